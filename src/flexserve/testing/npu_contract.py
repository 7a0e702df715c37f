"""The contract of the Npu port, as tests that every adapter must pass.

class TestMyNpu(NpuContract):
    def rig(self) -> AbstractContextManager[NpuRig]:
        return my_rig()
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import pytest

from flexserve.errors import InternalError, NpuLostError
from flexserve.platforms.linux import mman
from flexserve.platforms.ports import Npu, NpuLimits, NpuState, Product, SecureMemory
from flexserve.testing import q8
from flexserve.testing.npu import compute
from flexserve.units import MIB, align_up

_PATIENCE = 60.0  # seconds: a hang is a failure


class NpuRig(Protocol):
    """An NPU under test, the memory that its jobs may name, and the normal world that lends it."""

    @property
    def npu(self) -> Npu: ...

    @property
    def memory(self) -> SecureMemory: ...

    def refuse(self) -> None:
        """Have the normal world not lend it, until `relent`."""

    def relent(self) -> None:
        """Have it lend what it was asked for, and what it will be."""

    def call_back(self, seconds: float) -> None:
        """Have it want the NPU back within `seconds`."""

    def hang(self) -> None:
        """Have jobs begin and not end, until `heal`."""

    def heal(self) -> None:
        """Have jobs end again, that hang or are to come."""


class Bench:
    """Matrices in secure memory for an NPU to work on."""

    def __init__(self, memory: SecureMemory, limits: NpuLimits) -> None:
        self.memory = memory
        self._arena = memory.reserve(8 * MIB)
        memory.commit(self._arena, 0, self._arena.size)
        self._next = 0
        self._rng = np.random.default_rng(4)
        self.place = self._take(limits.place, mman.PAGE)

    def product(self, rows: int, columns: int, depth: int, *, padding: int = 0) -> Product:
        """Return a product of random matrices; rows lie `padding` bytes apart, C has 0xff all over."""
        width = depth // q8.BLOCK * q8.BLOCK_BYTES
        a, b = (self._put(q8.random_matrix(self._rng, n, depth), width + padding) for n in (rows, columns))
        stride = 4 * (columns + padding)
        c = self._take(rows * stride, 4)
        mman.view(c, rows * stride)[:] = b"\xff" * (rows * stride)
        return Product(rows, columns, depth, a, width + padding, b, width + padding, c, stride)

    def result(self, product: Product) -> bytes:
        """Return what stands where C and its padding are."""
        return bytes(mman.view(product.c, product.rows * product.c_stride))

    def expected(self, product: Product) -> bytes:
        """Return what has to stand there."""
        before = self.result(product)
        compute(product)
        expected = self.result(product)
        mman.view(product.c, len(before))[:] = before
        return expected

    def _put(self, matrix: q8.Q8Matrix, stride: int) -> int:
        rows, packed = matrix.shape[0], q8.pack(matrix)
        width = len(packed) // rows
        address = self._take(rows * stride, 2) + 2  # in the middle of a page
        for row in range(rows):
            mman.view(address + row * stride, width)[:] = packed[row * width : (row + 1) * width]
        return address

    def _take(self, size: int, alignment: int) -> int:
        start = align_up(self._next, alignment)
        self._next = start + size + 64
        assert self._next <= self._arena.size
        return self._arena.base + start


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait until `condition` holds; return whether it came to."""
    deadline = time.monotonic() + _PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return condition()


class NpuContract(abc.ABC):
    """The laws of Npu. Abstract: an adapter's test module says how to make one."""

    pytestmark = pytest.mark.timeout(120)

    @abc.abstractmethod
    def rig(self) -> contextlib.AbstractContextManager[NpuRig]:
        """Return a context with an NPU that nobody asked for yet, and 16 MiB of memory."""

    @pytest.fixture
    def rigged(self) -> Iterator[NpuRig]:
        with self.rig() as rig:
            yield rig

    @pytest.fixture
    def npu(self, rigged: NpuRig) -> Npu:
        return rigged.npu

    @pytest.fixture
    def bench(self, rigged: NpuRig) -> Bench:
        return Bench(rigged.memory, rigged.npu.limits)

    def hold(self, npu: Npu) -> None:
        def held() -> bool:
            npu.ask()
            return npu.state is NpuState.HELD

        assert eventually(held), "it was not lent"

    def run(self, npu: Npu, bench: Bench, *products: Product) -> None:
        expected = [bench.expected(product) for product in products]
        npu.submit(products, bench.place)
        assert npu.wait(_PATIENCE)
        assert [bench.result(product) for product in products] == expected

    # Whose it is

    def test_it_is_away_until_it_is_asked_for(self, npu: Npu) -> None:
        assert npu.state is NpuState.AWAY
        self.hold(npu)

    def test_it_comes_when_the_normal_world_lends_it(self, rigged: NpuRig, npu: Npu) -> None:
        rigged.refuse()
        npu.ask()
        npu.ask()
        assert npu.state is NpuState.COMING
        rigged.relent()
        assert eventually(lambda: npu.state is NpuState.HELD)

    def test_it_tells_of_every_change(self, rigged: NpuRig, npu: Npu) -> None:
        def awaited(state: NpuState, wanted: bool) -> threading.Thread:
            def wait() -> None:
                with npu.changed:
                    npu.changed.wait_for(lambda: (npu.state, npu.wanted_back is not None) == (state, wanted))

            thread = threading.Thread(target=wait, daemon=True)
            thread.start()
            return thread

        changes: list[tuple[NpuState, bool, Callable[[], None]]] = [
            (NpuState.HELD, False, lambda: self.hold(npu)),
            (NpuState.HELD, True, lambda: rigged.call_back(5)),
            (NpuState.AWAY, False, npu.release),
        ]
        for state, wanted, change in changes:
            waiting = awaited(state, wanted)
            change()
            waiting.join(_PATIENCE)
            assert not waiting.is_alive(), f"it did not tell that it is {state.value}"

    def test_the_normal_world_says_when_it_wants_it_back(self, rigged: NpuRig, npu: Npu) -> None:
        self.hold(npu)
        assert npu.wanted_back is None
        rigged.call_back(5)
        assert eventually(lambda: npu.wanted_back is not None)
        assert npu.wanted_back is not None
        assert npu.wanted_back <= time.monotonic() + 5
        npu.release()
        assert npu.wanted_back is None

    def test_it_goes_and_comes_again(self, npu: Npu, bench: Bench) -> None:
        product = bench.product(3, 5, 64)
        for _ in range(3):
            self.hold(npu)
            self.run(npu, bench, product)
            npu.release()
            assert npu.state in (NpuState.LEAVING, NpuState.AWAY)
            assert eventually(lambda: npu.state is NpuState.AWAY)

    def test_giving_back_what_one_does_not_have_is_nothing(self, npu: Npu) -> None:
        npu.release()
        self.hold(npu)
        npu.ask()
        assert eventually(lambda: npu.state is NpuState.HELD)

    def test_who_does_not_want_it_any_more_does_not_get_it(self, rigged: NpuRig, npu: Npu) -> None:
        rigged.refuse()
        npu.ask()
        npu.release()
        assert eventually(lambda: npu.state is NpuState.AWAY)
        rigged.relent()
        time.sleep(0.02)
        assert npu.state is NpuState.AWAY
        self.hold(npu)

    # Jobs

    @pytest.mark.parametrize(
        "shape", [(1, 1, 32), (2, 3, 64), (33, 65, 256), (64, 7, 2048), (5, 1200, 96)], ids=str
    )
    def test_a_product_is_what_the_book_says(
        self, npu: Npu, bench: Bench, shape: tuple[int, int, int]
    ) -> None:
        self.hold(npu)
        self.run(npu, bench, bench.product(*shape))

    def test_only_the_columns_of_a_row_are_written(self, npu: Npu, bench: Bench) -> None:
        self.hold(npu)
        product = bench.product(9, 33, 64, padding=24)
        self.run(npu, bench, product)
        first = bench.result(product)[: product.c_stride]
        assert first[4 * product.columns :] == b"\xff" * 96

    def test_one_job_has_many_products(self, npu: Npu, bench: Bench) -> None:
        self.hold(npu)
        self.run(npu, bench, *(bench.product(rows, 40, 96) for rows in range(1, 8)))

    def test_job_follows_job(self, npu: Npu, bench: Bench) -> None:
        self.hold(npu)
        for rows in range(1, 12):
            self.run(npu, bench, bench.product(rows, 16, 64))

    def test_a_job_beyond_the_limits_is_a_bug_and_changes_nothing(self, npu: Npu, bench: Bench) -> None:
        self.hold(npu)
        good = bench.product(2, 2, 32)
        bad = [
            dataclasses.replace(good, rows=npu.limits.rows + 1),
            dataclasses.replace(good, columns=0),
            dataclasses.replace(good, depth=33),
            dataclasses.replace(good, depth=npu.limits.depth + 32),
        ]
        for product in bad:
            with pytest.raises(InternalError):
                npu.submit([product], bench.place)
        with pytest.raises(InternalError):
            npu.submit([], bench.place)
        self.run(npu, bench, good)

    def test_there_is_one_job_at_a_time(self, rigged: NpuRig, npu: Npu, bench: Bench) -> None:
        self.hold(npu)
        rigged.hang()
        npu.submit([bench.product(1, 1, 32)], bench.place)
        assert not npu.wait(0.02)
        with pytest.raises(InternalError):
            npu.submit([bench.product(1, 1, 32)], bench.place)

    def test_nothing_is_computed_while_it_is_away(self, npu: Npu, bench: Bench) -> None:
        with pytest.raises(NpuLostError):
            npu.submit([bench.product(1, 1, 32)], bench.place)

    def test_a_job_that_does_not_end_is_lost_with_the_release(
        self, rigged: NpuRig, npu: Npu, bench: Bench
    ) -> None:
        self.hold(npu)
        rigged.hang()
        product = bench.product(4, 4, 64)
        npu.submit([product], bench.place)
        assert not npu.wait(0.02)
        npu.release()
        with pytest.raises(NpuLostError):
            npu.wait(_PATIENCE)
        assert eventually(lambda: npu.state is NpuState.AWAY)
        before = bench.result(product)
        time.sleep(0.05)
        assert bench.result(product) == before, "it was written to when nobody could any more"

    def test_what_was_lost_is_over_when_it_comes_again(self, rigged: NpuRig, npu: Npu, bench: Bench) -> None:
        self.hold(npu)
        rigged.hang()
        npu.submit([bench.product(4, 4, 64)], bench.place)
        npu.release()
        assert eventually(lambda: npu.state is NpuState.AWAY)
        rigged.heal()
        self.hold(npu)
        self.run(npu, bench, bench.product(4, 4, 64))
