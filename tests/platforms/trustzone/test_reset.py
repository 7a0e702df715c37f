"""Resets: nobody finds what was secret in RAM afterwards, whichever way the machine was reset or ended."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

import pytest
from bare import BASE, CALL, PAGE, RAM, Bare, bare

from flexserve.platforms.trustzone.abi import Call, Command, Event, Status

pytestmark = pytest.mark.vm

SYSTEM_OFF, SYSTEM_RESET = 0x8400_0008, 0x8400_0009
PLACES = tuple(BASE + offset for offset in (0, 0x20_1000, 0x40_0000, 0x400_0000, 0x800_0000, 0xC00_0000))


def filled(machine: Bare) -> bytes:
    """Have secure pages here and there, full of a pattern; return that."""
    pattern = secrets.token_bytes(32)
    machine.command(Command.ATTACH, 1)
    machine.settle()
    for place in PLACES:
        assert machine.call(Call.GRANT, place, 1)[0] == Status.OK
        machine.command(Command.COMMIT, place, 1, place)
        machine.settle()
        assert (Event.DONE, place, Status.OK) in machine.events()
        machine.memory[place - BASE : place - BASE + PAGE] = pattern * (PAGE // len(pattern))
    return pattern


def left(machine: Bare, pattern: bytes) -> int:
    return len(re.findall(re.escape(pattern), memoryview(machine.memory)))


def test_after_a_reset_that_nobody_announced_no_secret_is_left(tmp_path: Path) -> None:
    with bare(tmp_path, resets=True) as machine:
        pattern = filled(machine)
        assert left(machine, pattern) == len(PLACES) * PAGE // len(pattern)
        machine.reset()
        assert machine.call(Call.VERSION)[0] == Status.OK  # the normal world runs
        assert left(machine, pattern) == 0


@pytest.mark.parametrize("resets", [True, False])
def test_a_reset_by_the_normal_world_leaves_no_secret(tmp_path: Path, resets: bool) -> None:
    with bare(tmp_path, resets=resets) as machine:
        pattern = filled(machine)
        machine.last_wish(CALL, SYSTEM_RESET, resets=resets)
        assert left(machine, pattern) == 0


def test_a_machine_that_is_switched_off_leaves_no_secret_in_ram(tmp_path: Path) -> None:
    with bare(tmp_path) as machine:
        pattern = filled(machine)
        machine.last_wish(CALL, SYSTEM_OFF, resets=False)
        assert left(machine, pattern) == 0


def test_what_was_loaded_is_what_starts(tmp_path: Path) -> None:
    with bare(tmp_path) as machine:
        kernel = next(tmp_path.glob("*/bare.bin")).read_bytes()
        assert machine.memory[0x20_0000 : 0x20_0000 + len(kernel)] == kernel
        assert not any(machine.memory[0x20_0000 + len(kernel) : 0x20_0000 + PAGE])
        assert machine.wish(CALL, 0x8400_0000)[0] == 0x10000
        assert len(machine.memory) == RAM
