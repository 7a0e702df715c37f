"""The driver on real machines: what it hands over, how pressure recalls it, and how it ends."""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from machines import BASE, PAGE, RAM, Run, SecureWorld, ask, booted

from flexserve.errors import NormalWorldError
from flexserve.platforms.trustzone.abi import Byte, Command, Event, PageState
from flexserve.tee_client.ring_demands import ALL, LAYOUT, OFFSET
from flexserve.units import GIB, MIB

pytestmark = pytest.mark.vm

TOTAL = RAM // PAGE


@pytest.fixture(scope="module")
def machine() -> Iterator[Any]:
    with booted() as it:
        yield it


@pytest.fixture
def world(machine: Any) -> Iterator[SecureWorld]:
    world = SecureWorld(machine)
    world.attach()
    yield world
    world.die()
    settle(machine, world, 0)


def settle(machine: Any, world: SecureWorld, held: int) -> None:
    """Wait until the monitor and, a moment later, the driver count `held` pages handed over."""
    world.wait(lambda: world.held() == held)
    world.wait(lambda: ask(machine, "flexmem")["held"] == held)


def pages(runs: list[Run]) -> int:
    return sum(count for _, count in runs)


def states(world: SecureWorld, runs: list[Run]) -> set[int]:
    return {int(state) for address, count in runs for state in world.states[frame(address) :][:count]}


def frame(address: int) -> int:
    return (address - BASE) // PAGE


# ---- handing over -------------------------------------------------------------------------------


def test_memory_is_handed_over_in_blocks_of_two_mebibytes(machine: Any, world: SecureWorld) -> None:
    runs = world.want(64 * MIB // PAGE)
    assert pages(runs) == 64 * MIB // PAGE
    assert states(world, runs) == {PageState.GRANTED}
    state = ask(machine, "flexmem")
    assert state["held"] == pages(runs)
    assert state["order9"] > state["held"] // 2


def test_the_kernel_lacks_what_it_handed_over(machine: Any, world: SecureWorld) -> None:
    before = ask(machine, "meminfo")
    world.want(64 * MIB // PAGE)
    after = ask(machine, "meminfo")
    assert after["flexmem"] - before["flexmem"] == 64 * MIB
    assert 60 * MIB < before["free"] - after["free"] < 72 * MIB


def test_what_comes_back_is_zeros_and_the_kernels(machine: Any, world: SecureWorld) -> None:
    before = ask(machine, "meminfo")["free"]
    secret = secrets.token_bytes(16)
    runs = world.want(32 * MIB // PAGE)
    world.each(Command.COMMIT, runs)
    world.fill(runs, secret)
    world.recall(runs)
    assert secret not in world.memory[:]
    assert states(world, runs) == {PageState.NORMAL}
    assert abs(ask(machine, "meminfo")["free"] - before) < 8 * MIB


def test_single_pages_of_a_block_can_go_back(machine: Any, world: SecureWorld) -> None:
    ((address, count),) = [run for run in world.want(512, 512) if run[1] == 512]
    world.each(Command.COMMIT, [(address, count)])
    world.recall([(address + 2 * index * PAGE, 1) for index in range(256)])
    settle(machine, world, 256)


def test_what_is_refused_goes_back_as_it_came(world: SecureWorld) -> None:
    runs = world.want(1024)
    world.each(Command.REFUSE, runs)
    world.wait(lambda: world.held() == 0)


def test_what_is_refused_goes_back_though_a_page_in_the_middle_is_used_after_all(
    machine: Any, world: SecureWorld
) -> None:
    ((address, _), *_) = world.want(512, 512)
    held = world.held()
    world.put(Command.REFUSE, address, 3, 1 << 32)
    world.put(Command.COMMIT, address + PAGE, 1, 1 << 32 | 1)  # before the OS hears of the other one
    world.ring()
    settle(machine, world, held - 2)
    assert states(world, [(address, 3)]) == {PageState.NORMAL, PageState.SECURE}


def test_more_than_the_kernel_can_spare_is_met_in_part_or_not_at_all(
    machine: Any, world: SecureWorld
) -> None:
    assert world.want(2 * TOTAL, 2 * TOTAL) == []
    runs = world.want(2 * TOTAL, 1)
    assert TOTAL // 3 < pages(runs) < TOTAL
    assert ask(machine, "meminfo")["available"] > 0
    assert ask(machine, "run hog 1")["result"]["wrong"] == 0


# ---- pressure -----------------------------------------------------------------------------------


class Cache:
    """What an idle secure world holds: it gives whatever is asked for."""

    def __init__(self, world: SecureWorld, size: int) -> None:
        self._world = world
        self.runs = world.want(size // PAGE)
        world.each(Command.COMMIT, self.runs)

    def give(self) -> None:
        wanted = sum(count for count, _ in self._world.pressure)
        self._world.pressure.clear()
        gone: list[Run] = []
        while self.runs and pages(gone) < wanted:
            gone.append(self.runs.pop())
        for address, count in gone:
            self._world.put(Command.RECALL, address, count, 0)
        if gone:
            self._world.ring()


def finish(machine: Any, world: SecureWorld, cache: Cache, program: str) -> dict[str, Any]:
    """Run a program of the guest while the secure world serves; return what came of it."""
    job = ask(machine, f"start {program}")["job"]
    outcome: dict[str, Any] = {"running": True}
    looked = time.monotonic()

    def serve() -> None:
        nonlocal outcome, looked
        cache.give()
        if time.monotonic() > looked + 0.1:
            outcome, looked = ask(machine, f"job {job}"), time.monotonic()

    world.wait(lambda: not outcome["running"], 120, serve)
    return outcome


def demand_in_the_ring(machine: Any) -> tuple[int, int, int]:
    """Return what the driver says in the ring: how many demands there were, milliseconds, pages."""
    place = ask(machine, "flexmem")["ring_page"] * PAGE - BASE
    demand: tuple[int, int, int] = LAYOUT.unpack(os.pread(machine.ram_fd, LAYOUT.size, place + OFFSET))
    return demand


@pytest.mark.parametrize("ram", [256 * MIB, GIB])
def test_a_program_that_takes_most_of_memory_finishes(ram: int) -> None:
    with booted(ram) as machine:
        world = SecureWorld(machine)
        world.attach()
        cache = Cache(world, ram // 2)
        before = world.held()
        assert before > ram // PAGE // 3
        outcome = finish(machine, world, cache, "hog 80")
        assert outcome["signal"] == 0, "the OOM killer came"
        assert outcome["result"]["wrong"] == 0
        assert world.held() < before
        pressures = ask(machine, "flexmem")["pressures"]
        assert pressures > 0
        demands, deadline, wanted = demand_in_the_ring(machine)
        assert demands == pressures, "what the monitor is told, user space finds in the ring"
        assert (deadline, 0 < wanted <= before) == (100, True)


def test_a_page_cache_that_grows_does_not_kill_anybody(machine: Any, world: SecureWorld) -> None:
    cache = Cache(world, RAM // 2)
    outcome = finish(machine, world, cache, "churn 1024 3")
    assert (outcome["signal"], outcome["status"]) == (0, 0)


def test_a_secure_world_that_gives_nothing_delays_the_kernel_and_no_more() -> None:
    with booted() as machine:
        world = SecureWorld(machine)
        world.attach()
        world.each(Command.COMMIT, world.want(RAM // 2 // PAGE))
        outcome = ask(machine, "run hog 80", 60)
        assert outcome["signal"] == 9, "nobody gave way, so the kernel had to kill"
        assert ask(machine, "flexmem")["oom_waits"] > 0
        assert ask(machine, "ping") == {}


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_secure_world_that_stops_giving_costs_a_program_its_life_and_not_the_machine(cpus: int) -> None:
    with booted(cpus=cpus) as machine:
        world = SecureWorld(machine)
        world.attach()
        cache = Cache(world, RAM // 2)
        job = ask(machine, "start hog 80")["job"]
        world.wait(lambda: len(world.pressure) > 0)
        cache.give()
        deadline = time.monotonic() + 60
        while (outcome := ask(machine, f"job {job}"))["running"] and time.monotonic() < deadline:
            time.sleep(0.1)
        assert outcome["signal"] == 9
        assert ask(machine, "ping") == {}


# ---- ends ---------------------------------------------------------------------------------------


def test_when_the_secure_world_dies_everything_comes_back(machine: Any) -> None:
    world = SecureWorld(machine)
    world.attach()
    secret = secrets.token_bytes(16)
    used = world.want(8192)
    world.each(Command.COMMIT, used)
    world.fill(used, secret)
    world.want(2048)  # granted, and never used
    world.die()
    settle(machine, world, 0)
    assert secret not in world.memory[:]
    assert ask(machine, "flexmem")["attached"] == 0
    world.attach()
    assert pages(world.want(512)) == 512
    world.die()
    world.wait(lambda: world.held() == 0)


def test_the_driver_leaves_only_when_it_has_everything_back() -> None:
    with booted() as machine:
        world = SecureWorld(machine)
        world.attach()
        runs = world.want(4096)
        world.each(Command.COMMIT, runs)
        ask(machine, "write /sys/module/flexmem/parameters/drain_ms 500")
        with pytest.raises(NormalWorldError, match="busy"):
            ask(machine, "unload flexmem", 30)
        world.hear()
        assert world.others[Event.DETACHED] == 1
        assert world.held() == 4096
        assert pages(world.want(512)) == 512, "it stays, so it serves"
        world.recall(runs)
        world.each(Command.REFUSE, world.granted)
        world.wait(lambda: world.held() == 0)
        place = ask(machine, "flexmem")["ring_page"]
        ask(machine, "unload flexmem", 30)
        ask(machine, "load flexmem")
        assert ask(machine, "flexmem")["ring_page"] == place, "who maps the ring does so once"
        assert demand_in_the_ring(machine)[2] == ALL, "it asked for everything before it left"
        assert pages(world.want(512)) == 512


def test_protection_goes_off_when_nothing_is_handed_over_and_comes_back() -> None:
    with booted() as machine:
        ask(machine, "write /sys/module/flexmem/parameters/idle_ms 200")
        world = SecureWorld(machine)
        for _ in range(3):
            world.attach()
            assert pages(world.want(512)) == 512
            world.query()
            world.die()
            world.wait(lambda: world.bytes.endswith(bytes((Byte.OFF,))))
        world.wait(lambda: ask(machine, "flexmem")["relaxes"] >= 3)  # counted a moment after the byte


# ---- the baselines ------------------------------------------------------------------------------


def test_the_baselines_get_one_run_of_contiguous_memory() -> None:
    with booted(512 * MIB, contiguous=128 * MIB) as machine:
        ask(machine, "write /sys/module/flexmem/parameters/contiguous Y")
        world = SecureWorld(machine)
        world.attach()
        first, second = world.want(32 * MIB // PAGE), world.want(32 * MIB // PAGE)
        for runs in (first, second):
            ends = [address + count * PAGE for address, count in runs]
            assert [address for address, _ in runs[1:]] == ends[:-1]
            assert pages(runs) == 32 * MIB // PAGE
        assert world.want(RAM // PAGE, RAM // PAGE) == []
        world.each(Command.COMMIT, first)
        world.recall(first)
        world.each(Command.REFUSE, second)
        world.wait(lambda: world.held() == 0)


# ---- everything at once -------------------------------------------------------------------------


def cut(runs: list[Run], dice: random.Random) -> list[Run]:
    """Cut runs at random places."""
    parts = []
    for start, length in runs:
        address, count = start, length
        while count:
            size = min(count, dice.choice((1, 1, 1, 2, 3, 8, 64, 512)))
            parts.append((address, size))
            address, count = address + size * PAGE, count - size
    return parts


def test_a_long_random_life_leaks_nothing_and_loses_nothing() -> None:
    dice, secret = random.Random(4), secrets.token_bytes(16)
    operations = 0
    with booted() as machine:
        world = SecureWorld(machine)
        world.attach()
        jobs = [ask(machine, f"start {program}")["job"] for program in ("churn 512 600", "hog 20 600")]
        used: list[Run] = []
        end = time.monotonic() + 10
        while time.monotonic() < end:
            parts = cut(world.want(dice.randrange(1, 4096)), dice)
            dice.shuffle(parts)
            kept = len(parts) * 3 // 4
            world.each(Command.REFUSE, parts[kept:])
            world.each(Command.COMMIT, parts[:kept])
            for part in parts[:kept]:
                world.fill([part], secret)
            used += parts[:kept]
            dice.shuffle(used)
            gone = dice.randrange(len(used) + 1)
            world.each(Command.RECALL, used[:gone])
            del used[:gone]
            ask(machine, "write /proc/sys/vm/compact_memory 1")
            operations += 3 * len(parts) + 2 * gone
        settle(machine, world, pages(used))
        check_secrecy(world, secret)
        for job in jobs:
            ask(machine, f"stop {job}")
        world.die()
        world.wait(lambda: world.held() == 0)
        assert secret not in world.memory[:]
        assert not [line for line in machine.console() if "Unable to handle" in line or "BUG" in line]
    print(f"{operations} operations")


def check_secrecy(world: SecureWorld, secret: bytes) -> None:
    """The secret stands only where the monitor says SECURE, or not yet scrubbed."""
    memory = np.frombuffer(world.memory, np.uint64).reshape(-1, PAGE // 8)
    word = np.frombuffer(secret, np.uint64)[0]
    holding = (memory == word).any(axis=1)
    allowed = (world.states == PageState.SECURE) | (world.states == PageState.RECALLING)
    assert not (holding & ~allowed).any()
