"""The guest's kernel presses, leaves and takes unused pages; Flex-Mem's account stays right."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator

import pytest

from flexserve.platforms.trustzone.abi import PageState
from flexserve.platforms.trustzone.ram import PAGE
from flexserve.platforms.trustzone.secure_memory import TrustZoneMemory
from flexserve.protocol.memory import Recall
from flexserve.secure_world.guest import GuestDemands, GuestGranter
from flexserve.secure_world.resources import Guest
from flexserve.serving.demands import Demand
from flexserve.testing.trustzone import FakeMachine, eventually
from flexserve.trusted.memory import ownership as pages
from flexserve.trusted.memory.flexmem import FlexMem
from flexserve.units import KIB, MIB

RAM = 32 * MIB
CHUNK = 64 * KIB
PAGES = CHUNK // PAGE
WHOLE = (1 << 64) - 1


class World:
    """A secure world without models: Flex-Mem over a machine, and a reclaimer that gives what is asked."""

    def __init__(self, machine: FakeMachine) -> None:
        self.machine = machine
        pages = machine.unbegun(patience=1)
        self.flexmem = FlexMem(TrustZoneMemory(pages, CHUNK), RAM, GuestGranter(pages))
        self.arena = self.flexmem.reserve(16 * CHUNK)
        self.asked: list[Recall] = []
        self._later: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.guest = GuestDemands(
            Guest(pages, None, lambda: None, b"", b""), self.flexmem, self.answer, self._later.put
        )
        pages.start(self.guest)

    def answer(self, message: Recall) -> None:
        """Give chunks from the end: the reclaimer's part."""
        self.asked.append(message)
        assert message.demand is not None
        held = [at for at in range(0, 16 * CHUNK, CHUNK) if self.flexmem.holds(self.arena, at)]
        for at in held[::-1][: -(-message.demand // CHUNK)]:
            self.flexmem.release(self.arena, at, CHUNK)

    def work(self) -> None:
        """Do what the reclaimer's thread does next."""
        self._later.get(timeout=5)()

    def idle(self) -> bool:
        return self._later.empty()


@pytest.fixture
def world() -> Iterator[World]:
    with FakeMachine(RAM) as machine:
        yield World(machine)
        machine.check()


def test_what_is_granted_lies_ready_and_is_used(world: World) -> None:
    assert world.flexmem.grant(4 * CHUNK) == 4 * CHUNK
    assert world.machine.monitor.counts()[PageState.GRANTED] == 4 * PAGES
    assert world.flexmem.try_commit(world.arena, 0, 4 * CHUNK)
    assert world.machine.monitor.counts()[PageState.SECURE] == 4 * PAGES
    world.flexmem.check()


def test_what_is_given_up_unused_goes_back_at_once(world: World) -> None:
    world.flexmem.grant(4 * CHUNK)
    assert world.flexmem.return_unused() == 4 * CHUNK
    assert world.machine.settled(PageState.GRANTED, 0)


def test_what_comes_beyond_whole_chunks_goes_back(world: World) -> None:
    world.machine.driver.most = 2 * PAGES + 3
    assert world.flexmem.grant(4 * CHUNK) == 2 * CHUNK
    assert world.machine.settled(PageState.GRANTED, 2 * PAGES)


def test_recycled_memory_needs_no_second_grant(world: World) -> None:
    world.flexmem.commit(world.arena, 0, 2 * CHUNK)
    world.flexmem.recycle(world.arena, 0, 2 * CHUNK)
    with world.machine.hung():
        assert world.flexmem.try_commit(world.arena, 8 * CHUNK, 2 * CHUNK)
    assert not any(world.flexmem.view(world.arena, 8 * CHUNK, 2 * CHUNK))
    world.flexmem.check()


def test_pressure_takes_what_is_unused_before_it_asks_the_reclaimer(world: World) -> None:
    world.flexmem.commit(world.arena, 0, 16 * CHUNK)
    world.flexmem.grant(2 * CHUNK)
    world.machine.monitor.pressure(3 * PAGES, 100)
    world.work()
    assert [message.demand for message in world.asked] == [CHUNK]
    assert world.asked[0].deadline == 100
    assert not world.asked[0].gentle
    assert world.machine.settled(PageState.SECURE, 15 * PAGES)
    assert world.machine.settled(PageState.GRANTED, 0)


def test_demands_that_pile_up_are_one(world: World) -> None:
    world.flexmem.commit(world.arena, 0, 16 * CHUNK)
    for size, deadline in ((1, 500), (4, 50), (2, 900)):
        world.machine.monitor.pressure(size * PAGES, deadline)
    assert eventually(lambda: not world.idle())
    eventually(lambda: world.guest.demands.asked == Demand(4 * CHUNK, 0.05))
    world.work()
    assert [(message.demand, message.deadline) for message in world.asked] == [(4 * CHUNK, 50)]
    assert world.idle()


def test_an_absurd_demand_is_for_all_there_is_and_soon(world: World) -> None:
    world.flexmem.commit(world.arena, 0, 16 * CHUNK)
    world.machine.monitor.pressure(WHOLE, WHOLE)
    world.work()
    assert world.asked[0].demand == RAM
    assert world.asked[0].deadline <= 10_000
    assert world.flexmem.resident() == 0


def test_a_driver_that_leaves_gets_everything(world: World) -> None:
    world.flexmem.commit(world.arena, 0, 8 * CHUNK)
    world.flexmem.grant(2 * CHUNK)
    world.machine.monitor.detach()
    world.work()
    assert world.flexmem.resident() == 0
    assert eventually(lambda: world.machine.charged(0) == 0)


def test_a_world_that_holds_nothing_lets_protection_go(world: World) -> None:
    world.flexmem.commit(world.arena, 0, CHUNK)
    assert world.flexmem.bytes_in(pages.PageState.SECURE) == CHUNK
    world.flexmem.report_returned(world.flexmem.release(world.arena, 0, CHUNK))
    assert eventually(lambda: world.machine.monitor.relax() == 0)
    world.flexmem.commit(world.arena, 0, CHUNK)
