"""An NPU in numpy, NPUs that misbehave, and the contract of the Npu port.

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
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import pytest

from flexserve.errors import InternalError, NpuLostError
from flexserve.platforms.linux import mman
from flexserve.platforms.ports import Npu, NpuLimits, NpuState, Product, SecureMemory
from flexserve.testing import q8
from flexserve.units import MIB, align_up

_PATIENCE = 20.0  # seconds: a hang is a failure


def compute(product: Product) -> None:
    """Compute a product, on memory of this process, by the book."""
    a, b = (
        q8.read(mman.view(address, (rows - 1) * stride + width), rows, product.depth, stride)
        for address, rows, stride in (
            (product.a, product.rows, product.a_stride),
            (product.b, product.columns, product.b_stride),
        )
        for width in (product.depth // q8.BLOCK * q8.BLOCK_BYTES,)
    )
    length = (product.rows - 1) * product.c_stride + 4 * product.columns
    raw = np.frombuffer(mman.view(product.c, length), np.uint8)
    target = np.lib.stride_tricks.as_strided(
        raw.view(np.float32), (product.rows, product.columns), (product.c_stride, 4)
    )
    target[:] = q8.multiply(a, b)


class FakeNpu:
    """An NPU without a machine. The test plays the normal world: `lend`, `call_back`, `lose`.

    Lends itself when it is asked for, unless not `willing`. Jobs run on a thread, one `delay` each.
    """

    limits = NpuLimits(rows=4096, columns=65536, depth=65536, products=64, reach=64 * MIB, place=mman.PAGE)

    def __init__(self, *, willing: bool = True, delay: float = 0.0) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.willing, self.delay = willing, delay
        self.stuck = False  # jobs begin, and do not end
        self.computed: list[Product] = []
        self._state = NpuState.AWAY
        self._wanted_back: float | None = None
        self._changed = threading.Condition()
        self._job: threading.Thread | None = None
        self._failed = False

    # ---- the normal world

    def lend(self) -> None:
        """Let it go to the secure world."""
        self._become(NpuState.HELD)

    def call_back(self, seconds: float) -> None:
        """Want it back within `seconds`."""
        with self._changed:
            self._wanted_back = time.monotonic() + seconds
        self.on_change()

    def lose(self) -> None:
        """Take it without asking, as a machine that breaks does."""
        self._leave()

    # ---- the port

    @property
    def state(self) -> NpuState:
        return self._state

    @property
    def wanted_back(self) -> float | None:
        return self._wanted_back if self._state is NpuState.HELD else None

    def ask(self) -> None:
        if self._state is NpuState.AWAY:
            self._become(NpuState.COMING)
            if self.willing:
                self.lend()

    def submit(self, products: Sequence[Product], place: int) -> None:
        check(products, self.limits)
        with self._changed:
            if self._state is not NpuState.HELD:
                raise NpuLostError("The NPU is away (fake).")
            if self._job is not None and not self._failed:
                raise InternalError("The NPU has a job.")
            self._failed = False
            self._job = threading.Thread(target=self._run, args=(list(products), place), daemon=True)
            self._job.start()

    def wait(self, seconds: float) -> bool:
        job = self._job
        if job is None:
            raise InternalError("The NPU has no job.")
        deadline = time.monotonic() + seconds
        while job.is_alive() and not self._failed and time.monotonic() < deadline:
            job.join(min(0.001, seconds))
        if self._failed:
            self._job = None
            raise NpuLostError("The NPU was lost (fake).")
        if job.is_alive():
            return False
        self._job = None
        return True

    def release(self) -> None:
        if self._state is NpuState.HELD:
            self._leave()

    def _leave(self) -> None:
        self._become(NpuState.LEAVING)
        if self._job is not None:
            self._failed = True
            self._job.join()
        self._become(NpuState.AWAY)

    def _become(self, state: NpuState) -> None:
        with self._changed:
            self._state = state
            self._wanted_back = None
            self._changed.notify_all()
        self.on_change()

    def _run(self, products: Sequence[Product], place: int) -> None:
        mman.view(place, self.limits.place)[:8] = b"occupied"
        if self.delay or self.stuck:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._state is not NpuState.HELD, None if self.stuck else self.delay
                )
        for product in products:
            if self._state is not NpuState.HELD:
                return
            compute(product)
            self.computed.append(product)


class Troubled(FakeNpu):
    """Has a trouble (a method of FakeNpu, say) just after job number `at` was begun; the first is 1."""

    def __init__(self, *, at: int, trouble: Callable[[FakeNpu], None], delay: float = 0.0) -> None:
        super().__init__(delay=delay)
        self.at, self.trouble = at, trouble
        self.begun = 0

    def submit(self, products: Sequence[Product], place: int) -> None:
        super().submit(products, place)
        self.begun += 1
        if self.begun == self.at:
            self.trouble(self)


def check(products: Sequence[Product], limits: NpuLimits) -> None:
    """Raise InternalError for a job beyond `limits`."""
    fits = 0 < len(products) <= limits.products and all(
        0 < p.rows <= limits.rows and 0 < p.columns <= limits.columns and 0 < p.depth <= limits.depth
        for p in products
    )
    if not fits or any(p.depth % q8.BLOCK for p in products):
        raise InternalError("A job is beyond the NPU's limits.")


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
        npu.ask()
        assert eventually(lambda: npu.state is NpuState.HELD), "it was not lent"

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
        seen: list[tuple[NpuState, bool]] = []
        npu.on_change = lambda: seen.append((npu.state, npu.wanted_back is not None))
        self.hold(npu)
        assert eventually(lambda: (NpuState.HELD, False) in seen)
        rigged.call_back(5)
        assert eventually(lambda: (NpuState.HELD, True) in seen)
        npu.release()
        assert eventually(lambda: (NpuState.AWAY, False) in seen)

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
