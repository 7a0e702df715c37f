"""The NPU of a booted machine, lent by its kernel to the secure end, through the monitor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
from machines import booted

from flexserve.platforms.ports import NpuState
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.flexnpu import TrustZoneNpu
from flexserve.platforms.trustzone.guest_pages import GuestPages
from flexserve.platforms.trustzone.mailbox import Mailbox
from flexserve.platforms.trustzone.ram import Ram
from flexserve.platforms.trustzone.secure_memory import TrustZoneMemory
from flexserve.testing.npu_contract import Bench, eventually
from flexserve.units import KIB

pytestmark = pytest.mark.vm

CHUNK, PATIENCE = 64 * KIB, 60.0


@pytest.fixture(scope="module")
def machine() -> Iterator[Any]:
    with booted(npu=True) as it:
        yield it


def npu_of(machine: Any, driver: bytes) -> tuple[TrustZoneNpu, TrustZoneMemory]:
    pages = GuestPages(Ram(machine.ram_fd), Mailbox(Ram(machine.ram_fd), machine.doorbell), patience=PATIENCE)
    memory = TrustZoneMemory(pages, CHUNK)
    npu = TrustZoneNpu(pages, memory, driver)
    pages.start(npu)
    return npu, memory


def built_driver(machine: Any) -> bytes:
    return hashlib.sha256(machine._images.npu_core.read_bytes()).digest()


def test_what_the_npu_computes_in_the_secure_world_is_right_each_time_it_is_lent(machine: Any) -> None:
    npu, memory = npu_of(machine, built_driver(machine))
    bench = Bench(memory, npu.limits)
    for _ in range(3):
        product = bench.product(33, 130, 256)
        expected = bench.expected(product)

        def held() -> bool:
            npu.ask()
            return npu.state is NpuState.HELD

        assert eventually(held)
        assert machine.monitor().npu is abi.NpuState.SECURE
        npu.submit([product], bench.place)
        assert npu.wait(PATIENCE)
        assert bench.result(product) == expected
        npu.release()
        assert eventually(lambda: machine.monitor().npu is abi.NpuState.NORMAL)
    assert machine.monitor().faults == 0
