"""The fake NPU keeps the contract of the port, and the kit fails NPUs that break it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pytest

from flexserve.platforms.linux import mman
from flexserve.platforms.linux.secure_memory import PlainMemory
from flexserve.platforms.ports import NpuState, Product
from flexserve.testing.npu import FakeNpu
from flexserve.testing.npu_contract import Bench, NpuContract
from flexserve.units import KIB


class FakeRig:
    def __init__(self, npu: FakeNpu) -> None:
        self.npu = npu
        self.memory = PlainMemory(64 * KIB)

    def refuse(self) -> None:
        self.npu.willing = False

    def relent(self) -> None:
        self.npu.willing = True
        if self.npu.state is NpuState.COMING:
            self.npu.lend()

    def call_back(self, seconds: float) -> None:
        self.npu.call_back(seconds)

    def hang(self) -> None:
        self.npu.stuck = True

    def heal(self) -> None:
        self.npu.stuck = False


class TestFakeNpu(NpuContract):
    @contextlib.contextmanager
    def rig(self) -> Iterator[FakeRig]:
        rig = FakeRig(FakeNpu())
        yield rig
        rig.npu.release()


class Sloppy(FakeNpu):
    """Leaves the last column to others."""

    def submit(self, products: Sequence[Product], place: int) -> None:
        super().submit(products, place)
        assert self._job is not None
        self._job.join()
        for product in products:
            mman.view(product.c, 4)[:] = b"\xff" * 4


class Keeping(FakeNpu):
    """Says that it is away, and is not told to go."""

    def release(self) -> None:
        pass


@pytest.mark.parametrize("kind", [Sloppy, Keeping])
def test_the_kit_notices(kind: type[FakeNpu]):
    rig = FakeRig(kind())
    kit = TestFakeNpu()
    law = {
        Sloppy: lambda bench: kit.test_a_product_is_what_the_book_says(rig.npu, bench, (2, 3, 64)),
        Keeping: lambda _bench: kit.test_the_normal_world_says_when_it_wants_it_back(rig, rig.npu),
    }[kind]
    with pytest.raises(AssertionError):
        law(Bench(rig.memory, rig.npu.limits))
    assert rig.npu.state is NpuState.HELD
