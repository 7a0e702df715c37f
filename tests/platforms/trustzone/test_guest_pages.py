"""The secure world and an OS that lies, regrets, is silent, presses, leaves or dies."""

from __future__ import annotations

import threading
import time

import pytest

from flexserve.errors import GrantRefusedError, NormalWorldError
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.abi import Event, PageState, Status
from flexserve.platforms.trustzone.exchange import Commit, Pressure, Want
from flexserve.platforms.trustzone.guest_pages import Subscriber
from flexserve.platforms.trustzone.mailbox import Ring
from flexserve.platforms.trustzone.pool import count
from flexserve.platforms.trustzone.ram import BASE, PAGE
from flexserve.platforms.trustzone.secure_memory import TrustZoneMemory
from flexserve.testing.fake_os import (
    Babbling,
    Boasting,
    Driver,
    Forged,
    Regretting,
    Scattering,
    Silent,
    Stubborn,
)
from flexserve.testing.trustzone import FakeMachine, eventually
from flexserve.units import KIB, MIB

RAM = 32 * MIB
CHUNK = 64 * KIB
PAGES = CHUNK // PAGE


class Predecessor:
    """A secure world that died without a word."""

    def __init__(self, machine: FakeMachine) -> None:
        self._machine, self._mailbox = machine, machine.mailbox()

    def hold(self, pages: int, *, more: int) -> None:
        """Die with `pages` pages in use and `more` granted."""
        ended = threading.Event()
        thread = threading.Thread(target=self._read, args=(ended,), daemon=True)
        thread.start()
        assert self._mailbox.attach(5)
        self._mailbox.put(Want(1, pages + more, 0))
        assert self._machine.settled(PageState.GRANTED, pages + more)
        self._mailbox.put(Commit(BASE, pages, 2))
        assert self._machine.settled(PageState.SECURE, pages)
        ended.set()
        self._mailbox.put(Want(3, 1, 0))  # whose events wake the reader up
        thread.join()

    def _read(self, ended: threading.Event) -> None:
        for _ in self._mailbox.events():
            if ended.is_set():
                return


class Counting(Scattering):
    """Counts what it is told of pages that nobody wants."""

    unwanted_told = 0

    def unwanted(self, ipa: int, pages: int) -> None:
        self.unwanted_told += 1
        super().unwanted(ipa, pages)


def memory_of(machine: FakeMachine, patience: float = 0.5) -> TrustZoneMemory:
    return TrustZoneMemory(machine.pages(patience=patience), CHUNK)


def test_pages_come_secure_and_go_back_scrubbed():
    with FakeMachine(RAM) as machine:
        pages = machine.pages()
        runs = pages.take(600)
        assert count(runs) == 600
        assert machine.monitor.counts()[PageState.SECURE] == 600
        machine.monitor.ram.window(runs[0].ipa - BASE, PAGE)[:6] = b"secret"
        pages.give_back(runs)
        assert machine.monitor.counts()[PageState.NORMAL] == machine.monitor.hidden // PAGE
        machine.check()


def test_what_is_wanted_ahead_is_used_before_more_is_asked_for():
    with FakeMachine(RAM) as machine:
        pages = machine.pages()
        assert pages.want(100, 0) == 100
        assert machine.monitor.counts()[PageState.GRANTED] == 100
        pages.take(60)
        assert pages.unused == 40
        pages.trim(10)
        assert machine.settled(PageState.GRANTED, 10)
        assert pages.unused == 10


def test_scattered_pages_that_nobody_used_go_back_in_few_commands():
    with FakeMachine(RAM, driver := Counting()) as machine:
        pages = machine.pages()
        assert pages.want(1800, 1800) == 1800
        used = pages.take(20)
        pages.trim(0)
        assert machine.settled(PageState.GRANTED, 0)
        assert machine.monitor.counts()[PageState.SECURE] == 20
        assert driver.unwanted_told <= 20 + 4
        pages.give_back(used)
        assert machine.settled(PageState.NORMAL, machine.monitor.hidden // PAGE)
        assert driver.free == machine.monitor.hidden // PAGE
        machine.check()


def test_what_the_os_took_back_itself_does_not_keep_its_neighbours_from_going_back():
    with FakeMachine(RAM) as machine:
        pages = machine.pages()
        assert pages.want(100, 100) == 100
        with machine.hung():
            pages.trim(0)
            machine.driver.unwanted(BASE, 10)
        assert eventually(lambda: pages.unused == 90), "what was not taken back is lost"
        pages.trim(0)
        assert machine.settled(PageState.GRANTED, 0)
        machine.check()


def test_kept_pages_are_used_again_without_the_os():
    with FakeMachine(RAM) as machine:
        pages = machine.pages()
        pages.keep(pages.take(64))
        with machine.hung():
            assert count(pages.take(64)) == 64


def test_kept_pages_that_are_trimmed_go_back_scrubbed():
    with FakeMachine(RAM) as machine:
        pages = machine.pages()
        runs = pages.take(64)
        machine.monitor.ram.window(runs[0].ipa - BASE, PAGE)[:6] = b"secret"
        pages.keep(runs)
        assert pages.resident() == 64 * PAGE
        pages.trim(0)
        assert machine.settled(PageState.NORMAL, machine.monitor.hidden // PAGE)
        machine.check()


# An OS that lies


@pytest.mark.parametrize("driver", [Boasting, Forged, Silent])
def test_an_os_that_answers_for_pages_it_did_not_grant_is_refused_in_bounded_time(driver: type[Driver]):
    with FakeMachine(RAM, driver()) as machine:
        memory = memory_of(machine)
        arena = memory.reserve(8 * CHUNK)
        began = time.monotonic()
        with pytest.raises(GrantRefusedError) as error:
            memory.commit(arena, 0, 4 * CHUNK)
        assert error.value.hint
        assert time.monotonic() - began < 5
        assert memory.resident() == 0
        memory.free(arena)


def test_an_os_that_boasts_gets_what_it_granted_back():
    with FakeMachine(RAM, Boasting()) as machine:
        pages = machine.pages()
        assert pages.want(100, 0) == 50
        with pytest.raises(GrantRefusedError):
            pages.take(200)
        assert machine.settled(PageState.GRANTED, 50), "what came in vain was kept"
        machine.check()


def test_pages_that_the_os_takes_back_before_their_commit_are_replaced():
    with FakeMachine(RAM, Regretting(times=3)) as machine:
        memory = memory_of(machine, patience=5)
        arena = memory.reserve(8 * CHUNK)
        memory.commit(arena, 0, arena.size)
        assert not any(memory.view(arena, 0, arena.size))
        memory.release(arena, 0, arena.size)
        memory.free(arena)
        machine.check()


def test_an_os_that_always_takes_back_is_refused_in_bounded_time():
    with FakeMachine(RAM, Regretting(times=1 << 60)) as machine:
        memory = memory_of(machine)
        arena = memory.reserve(CHUNK)
        with pytest.raises(GrantRefusedError):
            memory.commit(arena, 0, CHUNK)
        machine.check()


def test_an_os_that_does_not_take_what_it_is_offered_is_not_waited_for_long():
    with FakeMachine(RAM, Stubborn()) as machine:
        memory = memory_of(machine)
        arena = memory.reserve(2 * CHUNK)
        memory.commit(arena, 0, arena.size)
        began = time.monotonic()
        memory.release(arena, 0, CHUNK)
        assert time.monotonic() - began < 5
        assert memory.resident() == 2 * CHUNK, "what the OS has not taken is not its yet"
        memory.commit(arena, 0, CHUNK)
        assert not any(memory.view(arena, 0, CHUNK))


def test_an_os_that_hangs_during_a_commit_has_it_undone_when_it_comes_back():
    with FakeMachine(RAM) as machine:
        pages = machine.pages(patience=0.3)
        assert pages.want(64, 0) == 64
        with machine.hung(), pytest.raises(GrantRefusedError):
            pages.take(64)
        assert machine.settled(PageState.SECURE, 64), "the commit was carried out late"
        runs = pages.take(64)  # and its pages are there for the next one
        assert machine.monitor.counts()[PageState.SECURE] == 64
        pages.give_back(runs)
        machine.check()


def test_answers_that_come_late_twice_or_to_nobody_change_nothing():
    with FakeMachine(RAM, Babbling()) as machine:
        pages = machine.pages()
        for _ in range(20):
            pages.give_back(pages.take(300))
        assert pages.unused == 0
        machine.check()


def test_memory_in_pieces_is_refused_before_the_host_runs_out_of_mappings():
    with FakeMachine(RAM, Scattering()) as machine:
        memory = memory_of(machine)
        memory._most = 3 * PAGES
        arena = memory.reserve(8 * CHUNK)
        memory.commit(arena, 0, 2 * CHUNK)
        with pytest.raises(GrantRefusedError) as error:
            memory.commit(arena, 2 * CHUNK, 2 * CHUNK)
        assert "max_map_count" in error.value.hint
        assert memory.resident() == 2 * CHUNK
        memory.commit(arena, 2 * CHUNK, CHUNK)
        memory.release(arena, 0, 3 * CHUNK)
        memory.free(arena)
        assert memory.resident() == 0
        machine.check()


# An OS that presses, leaves, dies


class Told(Subscriber):
    def __init__(self) -> None:
        self.events: list[object] = []
        self.ended = threading.Event()

    def hear(self, event: object) -> None:
        self.events.append(event)

    def end(self) -> None:
        self.ended.set()


def test_pressure_is_told_as_the_os_said_it():
    with FakeMachine(RAM) as machine:
        told = Told()
        machine.pages(told).take(1)
        machine.monitor.pressure(300, 50)
        assert eventually(lambda: Pressure(300, 50) in told.events)


def test_the_end_of_the_machine_is_told_and_ends_every_wait():
    with FakeMachine(RAM, Silent()) as machine:
        told = Told()
        pages = machine.pages(told, patience=60)
        threading.Timer(0.2, machine.die).start()
        began = time.monotonic()
        with pytest.raises(NormalWorldError):
            pages.take(1)
        assert told.ended.wait(5)
        assert time.monotonic() - began < 10


def test_a_new_secure_world_starts_from_nothing():
    with FakeMachine(RAM) as machine:
        old = Predecessor(machine)
        old.hold(60, more=40)
        new = machine.pages()
        new.want(1, 1)
        new.trim(0)
        assert machine.settled(PageState.NORMAL, machine.monitor.hidden // PAGE)
        assert (new.unused, new.resident()) == (0, 0)
        machine.check()


def test_a_dead_secure_world_is_laid_to_rest_without_a_new_one():
    with FakeMachine(RAM) as machine:
        Predecessor(machine).hold(60, more=40)
        machine.reset_secure_core()
        assert machine.settled(PageState.NORMAL, machine.monitor.hidden // PAGE)
        machine.check()


# Protection that comes and goes


def test_a_secure_world_that_holds_nothing_lets_protection_go_and_has_it_back():
    with FakeMachine(RAM) as machine:
        pages = machine.pages()
        pages.give_back(pages.take(10))
        assert eventually(lambda: machine.monitor.relax() is Status.OK)
        assert machine.monitor.relax() is Status.OK
        runs = pages.take(10)
        assert machine.monitor.protected
        assert machine.monitor.relax() is Status.HELD
        pages.give_back(runs)
        machine.check()


def test_what_the_os_writes_while_protection_is_off_is_not_believed():
    with FakeMachine(RAM) as machine:
        pages = machine.pages(patience=1)
        assert machine.monitor.relax() is Status.OK
        forged = Ring(
            machine.monitor.mailbox,
            head=abi.OFFSET_EVENT_HEAD,
            tail=abi.OFFSET_EVENT_TAIL,
            slots=abi.HEADER_BYTES + abi.SLOTS * abi.SLOT_BYTES,
        )
        for epoch in (0, pages.mailbox._epoch):
            forged.put(Event.ATTACHED, epoch)
        forged.put(Event.GRANTED, BASE, 100)
        forged.put(99, 1, 2)
        time.sleep(0.1)
        assert (pages.unused, pages.resident()) == (0, 0)
        with machine.hung(), pytest.raises(GrantRefusedError):
            pages.take(10)
        pages.give_back(pages.take(10))
        machine.check()


def test_an_os_that_never_switches_protection_on_is_refused_in_bounded_time():
    with FakeMachine(RAM, Silent()) as machine:
        pages = machine.pages(patience=0.3)
        assert machine.monitor.relax() is Status.OK
        with machine.hung(), pytest.raises(GrantRefusedError):
            pages.take(1)


def test_a_machine_without_a_monitor_is_said_at_once():
    with FakeMachine(RAM) as machine:
        machine.die()
        with pytest.raises(NormalWorldError, match="No monitor"):
            machine.pages(patience=0.3)
