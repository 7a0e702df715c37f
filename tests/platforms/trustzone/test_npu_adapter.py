"""The NPU of the machine from the secure side: kernels that hang or leave, strangers, memory in pieces."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import pytest

from flexserve.errors import InternalError, NormalWorldError, NpuLostError
from flexserve.platforms.ports import Arena, NpuState
from flexserve.platforms.trustzone import abi, npu_jobs
from flexserve.platforms.trustzone.exchange import NpuWant
from flexserve.platforms.trustzone.flexnpu import TrustZoneNpu
from flexserve.platforms.trustzone.mailbox import Mailbox
from flexserve.platforms.trustzone.secure_memory import TrustZoneMemory
from flexserve.testing.fake_os import Scattering
from flexserve.testing.npu_contract import Bench
from flexserve.testing.trustzone import eventually
from flexserve.testing.trustzone_npu import DRIVER, Lender, NpuMachine
from flexserve.units import KIB, MIB

CHUNK = 64 * KIB


class ScatteringLender(Lender, Scattering):
    pass


class SecureWorld:
    def __init__(self, machine: NpuMachine, *, driver: bytes = DRIVER, patience: float = 1.0) -> None:
        self.machine = machine
        self.pages = machine.unbegun(patience=patience)
        self.memory = TrustZoneMemory(self.pages, CHUNK)
        self.npu = TrustZoneNpu(self.pages, self.memory, driver)
        self.pages.start(self.npu)
        self._bench: Bench | None = None

    @property
    def bench(self) -> Bench:
        self._bench = self._bench or Bench(self.memory, self.npu.limits)
        return self._bench

    def holding(self) -> Arena:
        """Hold some memory, and so be attached."""
        arena = self.memory.reserve(CHUNK)
        self.memory.commit(arena, 0, CHUNK)
        return arena

    def hold(self) -> None:
        def held() -> bool:
            self.npu.ask()
            return self.npu.state is NpuState.HELD

        assert eventually(held, within=20)

    def settled(self, state: NpuState) -> bool:
        return eventually(lambda: self.npu.state is state, within=20)


def fill(mailbox: Mailbox) -> None:
    while True:
        mailbox.put(NpuWant(1 << 40))


@pytest.fixture
def machine() -> Iterator[NpuMachine]:
    with NpuMachine(64 * MIB) as machine:
        yield machine


@pytest.fixture
def world(machine: NpuMachine) -> SecureWorld:
    return SecureWorld(machine)


def test_products_of_memory_in_pieces_are_right():
    with NpuMachine(64 * MIB, ScatteringLender()) as machine:
        world = SecureWorld(machine, patience=30)  # each of 2,048 pages is a command of its own
        products = [world.bench.product(33, 130, 256), world.bench.product(100, 40, 96, padding=20)]
        expected = [world.bench.expected(product) for product in products]
        world.hold()
        world.npu.submit(products, world.bench.place)
        assert world.npu.wait(60)
        assert [world.bench.result(product) for product in products] == expected


def test_who_is_not_attached_does_not_ask(world: SecureWorld):
    world.npu.ask()
    assert world.npu.state is NpuState.AWAY


def test_who_asks_or_holds_stays_attached_and_then_protection_may_go(world: SecureWorld):
    arena = world.holding()
    world.hold()
    world.memory.release(arena, 0, arena.size)
    world.memory.free(arena)
    time.sleep(2.5)  # in quiet moments it looks whether to detach
    assert world.npu.state is NpuState.HELD
    assert world.machine.monitor.relax() is abi.Status.HELD
    world.npu.release()
    assert world.settled(NpuState.AWAY)
    assert eventually(lambda: world.machine.monitor.relax() is abi.Status.OK, within=20)


def test_a_strange_driver_is_refused_for_good(machine: NpuMachine):
    world = SecureWorld(machine, driver=bytes(32))
    world.holding()
    world.npu.ask()
    assert world.settled(NpuState.REFUSED)
    assert eventually(lambda: machine.gate.normal)
    world.npu.ask()
    assert world.npu.state is NpuState.REFUSED
    with pytest.raises(NpuLostError):
        world.npu.submit([], 0)


def test_a_driver_that_leaves_wants_it_back(world: SecureWorld):
    world.holding()
    world.hold()
    world.machine.monitor.detach()
    assert eventually(lambda: world.npu.wanted_back is not None)


def test_a_demand_of_absurd_length_is_shortened(world: SecureWorld):
    world.holding()
    world.hold()
    world.machine.gate.ask((1 << 64) - 1)
    assert eventually(lambda: world.npu.wanted_back is not None)
    assert world.npu.wanted_back is not None
    assert world.npu.wanted_back < time.monotonic() + 11


def test_a_demand_from_before_it_came_counts(world: SecureWorld):
    world.holding()
    world.machine.lender.willing = False
    world.npu.ask()
    world.machine.gate.ask(1000)
    world.machine.relent()
    assert world.settled(NpuState.HELD)
    assert world.npu.wanted_back is not None


def test_an_os_that_hangs_has_it_when_it_runs_again(world: SecureWorld):
    world.holding()
    world.hold()
    with world.machine.hung():
        world.npu.release()
        assert world.npu.state is NpuState.LEAVING
        time.sleep(0.05)
        assert world.npu.state is NpuState.LEAVING, "nobody has said that it is gone"
    assert world.settled(NpuState.AWAY)


def test_a_job_that_an_os_does_not_start_is_not_over(world: SecureWorld):
    product = world.bench.product(2, 2, 32)
    world.hold()
    with world.machine.hung():
        world.npu.submit([product], world.bench.place)
        assert not world.npu.wait(0.05)
    assert world.npu.wait(60)


def test_what_was_given_back_during_a_job_is_lost_however_the_job_ended(world: SecureWorld):
    product = world.bench.product(2, 2, 32)
    world.hold()
    with world.machine.hung():
        world.npu.submit([product], world.bench.place)
        world.npu.release()  # before anybody heard of the job
    assert world.settled(NpuState.AWAY)
    world.hold()
    with pytest.raises(NpuLostError):
        world.npu.wait(60)


def test_memory_that_is_not_ours_is_no_part_of_a_job(world: SecureWorld):
    good = world.bench.product(2, 2, 32)
    world.hold()
    hole = world.memory.reserve(CHUNK)
    for bad in (dataclasses.replace(good, b=hole.base), dataclasses.replace(good, c=id(good))):
        with pytest.raises(InternalError):
            world.npu.submit([bad], world.bench.place)
    world.npu.submit([good], world.bench.place)
    assert world.npu.wait(60)


def test_a_job_names_so_much_memory_and_no_more(world: SecureWorld):
    good = world.bench.product(2, 2, 32)
    world.hold()
    with pytest.raises(InternalError):
        world.npu.submit([dataclasses.replace(good, rows=4096, a_stride=32 * KIB)], world.bench.place)


def test_a_mailbox_that_is_full_at_the_release_is_tried_again(
    world: SecureWorld, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("flexserve.platforms.trustzone.mailbox._PATIENCE", 0.05)
    world.holding()
    world.hold()
    with world.machine.hung():
        with pytest.raises(NormalWorldError, match="does not serve"):
            fill(world.pages.mailbox)
        world.npu.release()
        assert world.npu.state is NpuState.LEAVING
    world.machine.serve()
    assert world.settled(NpuState.AWAY)


def test_limits_are_what_a_description_has_room_for():
    limits = npu_jobs.LIMITS
    assert 11 * limits.products * 8 <= abi.PAGE_BYTES, "commands of a job"
    assert limits.reach + 4 * MIB <= (limits.place - 2 * abi.PAGE_BYTES) // 4 * abi.PAGE_BYTES
