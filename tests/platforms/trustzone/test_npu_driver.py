"""The NPU's driver on a real machine: products of programs, and the NPU to the secure world and back."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machines import PAGE, SecureWorld, ask, booted

from flexserve.errors import NormalWorldError
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.abi import (
    Byte,
    Call,
    Command,
    Event,
    NpuFormat,
    NpuInterrupt,
    NpuOperand,
    NpuRegister,
    NpuTarget,
    Status,
)
from flexserve.platforms.trustzone.layout import mailbox_offset, npu_window_offset

pytestmark = pytest.mark.vm

RIGHT = {"int8": "ok", "fp16": "ok", "q8_0": "ok", "wrong": 0}
PARAMETERS = "/sys/module/flexnpu/parameters"


@pytest.fixture(scope="module")
def machine() -> Iterator[Any]:
    with booted(npu=True) as it:
        yield it


@pytest.fixture
def world(machine: Any) -> Iterator[NpuWorld]:
    world = NpuWorld(machine)
    world.attach()
    yield world
    world.die()
    until(lambda: ask(machine, "flexnpu")["ours"] == 1)


class NpuWorld(SecureWorld):
    """A secure world that wants the NPU."""

    def npu_want(self) -> int:
        return self._order(Command.NPU_WANT)

    def npu_take(self) -> None:
        """Want the NPU until it is granted: as long as it is on its way to the OS, that is refused."""
        before = self.others[Event.NPU_GRANTED]
        while self.others[Event.NPU_GRANTED] == before:
            serial = self.npu_want()
            self.wait(lambda want=serial: want in self.done or self.others[Event.NPU_GRANTED] > before)  # type: ignore[misc]

    def npu_release(self) -> None:
        serial = self._order(Command.NPU_RELEASE)
        self.wait(lambda: serial in self.done)
        assert self.done.pop(serial) == Status.OK

    def npu_drive(self, commands: int, tables: int) -> int:
        """Have a job started whose list lies at address 0 of its translation; return what came of that."""
        self._serial += 1
        serial = self._serial
        self.put(Command.NPU_DRIVE, commands << 32, tables, serial)
        self.ring()
        self.wait(lambda: serial in self.done)
        return self.done.pop(serial)

    def npu_register(self, register: NpuRegister) -> int:
        at = npu_window_offset(len(self.memory)) + register
        return int.from_bytes(self.memory[at : at + 4], "little")

    def npu_asked(self) -> int:
        """How often the OS asked for it."""
        self.hear()
        return self.others[Event.NPU_ASKED]

    def npu_driver(self) -> bytes:
        """The digest of what drives it, by the monitor's word."""
        at = mailbox_offset(len(self.memory)) + abi.OFFSET_NPU_DRIVER
        return bytes(self.memory[at : at + 32])

    def _order(self, command: Command) -> int:
        self._serial += 1
        self.put(command, self._serial)
        self.ring()
        return self._serial


def until(happened: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def multiply(machine: Any, *words: object) -> dict[str, Any]:
    result: dict[str, Any] = ask(machine, " ".join(map(str, ("run npu multiply", *words))))["result"]
    return result


@contextlib.contextmanager
def running(machine: Any, program: str) -> Iterator[Callable[[], dict[str, Any]]]:
    """A program of the guest, from its start; what is yielded waits for its end and returns what it said."""
    job = ask(machine, f"start {program}")["job"]
    ended = False

    def result() -> dict[str, Any]:
        nonlocal ended
        outcome: dict[str, Any] = {"running": True}

        def look() -> bool:
            nonlocal outcome
            outcome = ask(machine, f"job {job}")
            return not outcome["running"]

        until(look, 60)
        ended = True
        said: dict[str, Any] = outcome["result"]
        return said

    yield result
    if not ended:
        ask(machine, f"stop {job}")


@contextlib.contextmanager
def changed(machine: Any, name: str, value: int) -> Iterator[None]:
    """A parameter of the driver with another value."""
    before = ask(machine, f"read {PARAMETERS}/{name}")["text"]
    ask(machine, f"write {PARAMETERS}/{name} {value}")
    yield
    ask(machine, f"write {PARAMETERS}/{name} {before.strip()}")


@contextlib.contextmanager
def hung(machine: Any) -> Iterator[Callable[[], None]]:
    """The NPU stands still, until the end or until what is yielded is called."""
    (device,) = npus(machine)
    os.kill(device, signal.SIGSTOP)
    try:
        yield lambda: os.kill(device, signal.SIGCONT)
    finally:
        os.kill(device, signal.SIGCONT)


def npus(machine: Any) -> list[int]:
    """The processes that are the machine's NPU."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_text().split("\0")
            ours = f"\nPPid:\t{os.getpid()}\n" in (path.parent / "status").read_text()
            if ours and "flexserve.emulator.npu" in words and str(machine.ram_fd) in words:
                found.append(int(path.parent.name))
    return found


def count(machine: Any, name: str) -> int:
    value: int = ask(machine, "flexnpu")[name]
    return value


# ---- products -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 32), (37, 41, 288), (130, 5, 4096), (3, 1030, 64)])
def test_a_product_is_right_in_every_format(machine: Any, shape: tuple[int, int, int]) -> None:
    assert multiply(machine, *shape) == RIGHT


def test_two_programs_at_once_both_get_what_is_theirs(machine: Any) -> None:
    with running(machine, "npu vision 2") as first, running(machine, "npu vision 2") as second:
        assert multiply(machine, 37, 41, 288, 5) == RIGHT
        for result in (first(), second()):
            assert result["wrong"] == 0
            assert result["products"] > 10


def test_a_program_that_is_killed_leaves_nothing_behind(machine: Any) -> None:
    with running(machine, "npu vision 600"):
        until(lambda: count(machine, "waiting") == 1)
    until(lambda: count(machine, "waiting") == 0)
    assert multiply(machine) == RIGHT


def test_memory_that_cannot_be_pinned_is_refused(machine: Any) -> None:
    with attacker(machine):
        uart = ask(machine, "run npu read 0x09000000")["result"]
        assert uart["errno"] == 14
    assert multiply(machine) == RIGHT


def test_a_page_of_the_secure_world_ends_the_job_and_the_next_one_is_right(
    machine: Any, world: NpuWorld
) -> None:
    with attacker(machine) as own:
        read = f"run npu read {own:#x}"
        assert ask(machine, read)["result"]["outcome"] == "done"
        assert smc(machine, Call.GRANT, own, 1) == Status.OK
        came = ask(machine, read)["result"]
        assert (came["outcome"], came["stopped"]) == ("fault", 1)
        assert multiply(machine) == RIGHT
        assert smc(machine, Call.RETURN, own, 1) == Status.OK
        assert ask(machine, read)["result"]["outcome"] == "done"


@contextlib.contextmanager
def attacker(machine: Any) -> Iterator[int]:
    """The attack module is loaded; yields the address of a page that programs can map by it."""
    ask(machine, "load flexattack")
    yield int(ask(machine, "attack own")["ipa"])
    ask(machine, "unload flexattack")


def smc(machine: Any, call: Call, *arguments: int) -> int:
    words = " ".join(f"{value:#x}" for value in (abi.SMC_BASE + call, *arguments))
    status: int = ask(machine, f"attack smc {words}")["x0"]
    return status


# ---- an NPU that hangs ----------------------------------------------------------------------------


def test_a_job_that_takes_too_long_is_reset_and_the_next_ones_are_right(machine: Any) -> None:
    before = count(machine, "timeouts")
    with changed(machine, "job_ms", 300):
        with hung(machine) as wake, running(machine, "npu multiply") as result:
            until(lambda: count(machine, "timeouts") > before)
            wake()
            assert result() == {"int8": "timed out", "fp16": "ok", "q8_0": "ok", "wrong": 1}
        assert multiply(machine) == RIGHT
    assert count(machine, "timeouts") == before + 1


def test_a_job_that_hangs_when_the_npu_is_wanted_is_cut_off_and_runs_again(
    machine: Any, world: NpuWorld
) -> None:
    before = count(machine, "interrupted")
    with hung(machine) as wake, running(machine, "npu multiply") as result:
        until(lambda: count(machine, "running") == 1)
        world.npu_want()
        until(lambda: count(machine, "ours") == 0)
        wake()
        world.wait(lambda: world.others[Event.NPU_GRANTED] > 0)
        world.wait(lambda: world.npu_asked() > 0)
        world.npu_release()
        assert result() == RIGHT
    assert count(machine, "interrupted") == before + 1


# ---- to the secure world and back -------------------------------------------------------------------


def test_what_drives_it_is_what_was_built(machine: Any, world: NpuWorld) -> None:
    world.npu_take()
    built = machine._images.npu_core.read_bytes()
    assert world.npu_driver() == hashlib.sha256(built).digest()


def test_it_starts_jobs_of_the_secure_world_too(world: NpuWorld) -> None:
    dice = np.random.default_rng(7)
    a, b = (dice.integers(-128, 128, (rows, 64), np.int8) for rows in (8, 16))
    runs = world.want(8, 8)
    world.each(Command.COMMIT, runs)
    world.fill(runs, bytes(16))
    directory, table, *mapped = [start + i * PAGE for start, count in runs for i in range(count)]
    commands = [
        *((NpuTarget.CNA, NpuOperand.FORMAT, NpuFormat.INT8), (NpuTarget.CNA, NpuOperand.M, 8)),
        *((NpuTarget.CNA, NpuOperand.N, 16), (NpuTarget.CNA, NpuOperand.K, 64)),
        *((NpuTarget.CNA, NpuOperand.A, PAGE), (NpuTarget.CNA, NpuOperand.A_STRIDE, 64)),
        *((NpuTarget.CNA, NpuOperand.B, 2 * PAGE), (NpuTarget.CNA, NpuOperand.B_STRIDE, 64)),
        *((NpuTarget.DPU, NpuOperand.C, 3 * PAGE), (NpuTarget.DPU, NpuOperand.C_STRIDE, 64)),
        (NpuTarget.RUN, 0, 1),
    ]
    job = b"".join(
        (target << 48 | value << 16 | place).to_bytes(8, "little") for target, place, value in commands
    )
    world.page(directory)[:4] = (table | 1).to_bytes(4, "little")
    for index, page in enumerate(mapped):
        world.page(table)[4 * index : 4 * index + 4] = (page | 7).to_bytes(4, "little")
    for page, data in zip(mapped, (job, a.tobytes(), b.tobytes()), strict=False):
        world.page(page)[: len(data)] = data
    world.npu_take()
    for _ in range(3):
        world.page(mapped[3])[:] = b"\xff" * PAGE
        assert world.npu_drive(len(commands), directory) == Status.OK
        until(lambda: not world.npu_register(NpuRegister.OP_EN))
        assert world.npu_register(NpuRegister.INT_RAW) == NpuInterrupt.DONE
        c = np.frombuffer(world.page(mapped[3]), np.int32, 8 * 16).reshape(8, 16)
        assert (c == a.astype(np.int32) @ b.astype(np.int32).T).all()


def test_an_npu_that_nobody_needs_is_not_asked_for(machine: Any, world: NpuWorld) -> None:
    world.npu_take()
    time.sleep(0.2)
    assert world.npu_asked() == 0


def test_jobs_wait_while_it_is_away_and_are_right_afterwards(machine: Any, world: NpuWorld) -> None:
    world.npu_take()
    jobs = count(machine, "jobs")
    with running(machine, "npu multiply") as result:
        world.wait(lambda: world.npu_asked() > 0)
        time.sleep(0.2)
        assert count(machine, "jobs") == jobs
        world.npu_release()
        assert result() == RIGHT


def test_work_in_the_queue_does_not_keep_it_from_the_secure_world_nor_the_other_way_round(
    machine: Any, world: NpuWorld
) -> None:
    with running(machine, "npu vision 5") as result:
        products, served = count(machine, "jobs"), 0
        end = time.monotonic() + 4
        while time.monotonic() < end:
            world.npu_take()
            world.wait(lambda: world.npu_asked() > 0)
            world.others[Event.NPU_ASKED] = 0
            world.npu_release()
            served += 1
        assert served > 5
        assert count(machine, "jobs") > products + served, "more than one for each time that it came back"
        assert result()["wrong"] == 0


def test_when_the_secure_world_dies_with_it_jobs_go_on(machine: Any) -> None:
    world = NpuWorld(machine)
    world.attach()
    world.npu_take()
    with running(machine, "npu multiply") as result:
        world.wait(lambda: world.npu_asked() > 0)
        world.die()
        assert result() == RIGHT


def test_a_secure_world_that_wanted_it_and_died_is_forgotten(machine: Any) -> None:
    for _ in range(3):
        world = NpuWorld(machine)
        world.attach()
        world.npu_want()
        world.die()
    assert multiply(machine) == RIGHT
    until(lambda: count(machine, "ours") == 1)


# ---- ends -------------------------------------------------------------------------------------------


def test_it_can_be_unloaded_and_loaded_again(machine: Any) -> None:
    before = count(machine, "jobs")
    with running(machine, "npu vision 600"):
        until(lambda: count(machine, "jobs") > before)
        with pytest.raises(NormalWorldError):
            ask(machine, "unload flexnpu")
    ask(machine, "unload flexnpu")
    ask(machine, "load flexnpu")
    assert multiply(machine) == RIGHT


def test_it_stays_while_the_npu_is_away_and_asks_for_it_first(machine: Any, world: NpuWorld) -> None:
    world.npu_take()
    with changed(machine, "detach_ms", 300), pytest.raises(NormalWorldError, match="busy"):
        ask(machine, "unload flexnpu")
    assert world.npu_asked() > 0
    world.npu_release()
    ask(machine, "unload flexnpu")
    ask(machine, "load flexnpu")
    world.npu_take()
    world.npu_release()
    assert multiply(machine) == RIGHT


def test_jobs_outlive_protection_that_goes_off_and_on() -> None:
    with booted(npu=True) as machine:
        ask(machine, "write /sys/module/flexmem/parameters/idle_ms 100")
        world = NpuWorld(machine)
        with running(machine, "npu vision 8") as result:
            for _ in range(5):
                world.attach()
                world.npu_take()
                world.npu_release()
                world.die()
                world.wait(lambda: world.bytes.endswith(bytes((Byte.OFF,))))
            assert result()["wrong"] == 0
        until(lambda: ask(machine, "flexmem")["relaxes"] >= 5)
