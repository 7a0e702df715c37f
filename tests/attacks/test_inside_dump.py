"""What is searched for secrets: all that was written to a file, RAM by its states, all that a process has."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexserve.attacks.trustzone.inside.dump import (
    anywhere_in_ram,
    in_files,
    in_process,
    in_ram,
    places_in_ram,
)
from flexserve.platforms.trustzone.abi import PageState
from flexserve.platforms.trustzone.layout import states_offset
from flexserve.platforms.trustzone.ram import PAGE
from flexserve.units import GIB, MIB

# One text begins and ends as a hole does.
SECRETS = {"a key": [b"not there", b"secret"], "weights": [b"\0canary\0"], "words": [b"nobody said this"]}


@pytest.fixture
def ram() -> Iterator[int]:
    descriptor = os.memfd_create("ram")
    os.truncate(descriptor, 64 * MIB)
    yield descriptor
    os.close(descriptor)


def enter(ram: int, page: int, state: PageState) -> None:
    os.pwrite(ram, bytes([state]), states_offset(64 * MIB) + page)


@pytest.mark.parametrize("place", [0, 40 * GIB, 64 * GIB - 6])
def test_a_sparse_file_is_searched_where_it_has_something(tmp_path: Path, place: int) -> None:
    disk = tmp_path / "folder" / "disk"
    disk.parent.mkdir()
    with disk.open("wb") as file:
        os.truncate(file.fileno(), 64 * GIB)
        os.pwrite(file.fileno(), b"secret", place)
    (tmp_path / "empty").touch()
    assert in_files(SECRETS, [tmp_path]) == in_files(SECRETS, [disk]) == {"a key"}
    assert in_files(SECRETS, [tmp_path / "empty", tmp_path / "nothing"]) == set()


@pytest.mark.parametrize("place", [0, PAGE - 1, MIB - 3, 3 * MIB - 8, 8 * MIB])
def test_a_text_is_found_wherever_it_lies(ram: int, place: int) -> None:
    os.pwrite(ram, b"x" * (3 * MIB), 0)
    os.pwrite(ram, b"\0canary\0", place)
    assert anywhere_in_ram(SECRETS, ram) == {"weights"}
    assert set(places_in_ram(b"\0canary\0", ram)) == {place}


def test_a_text_beside_a_hole_is_found_with_its_zeros(ram: int) -> None:
    os.pwrite(ram, b"canary", 5 * MIB)
    os.pwrite(ram, b"secret", 7 * MIB - 6)
    assert anywhere_in_ram(SECRETS, ram) == {"a key", "weights"}


@pytest.mark.parametrize("state", PageState)
def test_what_is_secure_or_not_yet_overwritten_is_out_of_the_os_reach(ram: int, state: PageState) -> None:
    os.pwrite(ram, b"secret", 3 * PAGE)
    enter(ram, 3, state)
    reached = state not in {PageState.SECURE, PageState.RECALLING}
    assert in_ram(SECRETS, ram) == ({"a key"} if reached else set())
    assert anywhere_in_ram(SECRETS, ram) == {"a key"}


@pytest.mark.parametrize(
    ("first", "second"), [(PageState.SECURE, PageState.NORMAL), (PageState.NORMAL, PageState.SECURE)]
)
def test_a_text_that_the_os_has_the_half_of_counts(ram: int, first: PageState, second: PageState) -> None:
    os.pwrite(ram, b"secret", 4 * PAGE - 3)
    enter(ram, 3, first)
    enter(ram, 4, second)
    assert in_ram(SECRETS, ram) == {"a key"}
    enter(ram, 3, PageState.SECURE)
    enter(ram, 4, PageState.SECURE)
    assert in_ram(SECRETS, ram) == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="to look into another process needs root")
def test_what_a_process_has_is_found_in_it_and_in_no_other() -> None:
    code = "import os, sys; secret = os.urandom(32); print(secret.hex(), flush=True); sys.stdin.read()"
    with contextlib.ExitStack() as stack:
        holders = [
            stack.enter_context(
                subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
            for _ in range(2)
        ]
        keys = {str(holder.pid): [bytes.fromhex(_line_of(holder))] for holder in holders}
        for holder in holders:
            assert in_process(keys, holder.pid) == {str(holder.pid)}


def _line_of(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode()
