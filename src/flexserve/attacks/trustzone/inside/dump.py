"""Everything that the normal world has of a conversation, searched for what is secret.

That is: the memory of the process that drives the guest, the guest's RAM but what is SECURE (or was, and is
not overwritten yet), which has the ring of messages, too, and the guest's storage.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from flexserve.emulator.machine import Machine
from flexserve.platforms.linux import kernel_views
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.layout import states_offset
from flexserve.platforms.trustzone.ram import PAGE, Ram

_OUT_OF_REACH = frozenset({abi.PageState.SECURE, abi.PageState.RECALLING})


def in_process(secret: bytes, pid: int) -> bool:
    """Whether it is anywhere in what a process has mapped. Raises OSError where nobody may look."""
    return bool(kernel_views.places_of(secret, pid))


def in_ram(secret: bytes, ram_fd: int) -> bool:
    """Whether it is in a guest's RAM, which `ram_fd` is, in a page that is within the OS's reach."""
    ram = Ram(ram_fd)
    with (
        ram.window(0, ram.size) as memory,
        ram.window(states_offset(ram.size), ram.pages) as states,
    ):
        return any(
            any(
                states[page] not in _OUT_OF_REACH
                for page in (found.start() // PAGE, (found.end() - 1) // PAGE)
            )
            for found in re.finditer(re.escape(secret), memory)
        )


def anywhere_in_ram(secret: bytes, ram_fd: int) -> bool:
    """Whether it is in a guest's RAM at all, as somebody with a probe on its wires would see."""
    ram = Ram(ram_fd)
    with ram.window(0, ram.size) as memory:
        return re.search(re.escape(secret), memory) is not None


def states_of(ram_fd: int) -> bytes:
    """Return the state of each page of a guest's RAM, by the monitor's table."""
    ram = Ram(ram_fd)
    with ram.window(states_offset(ram.size), ram.pages) as states:
        return bytes(states)


def in_files(secret: bytes, folders: Iterable[Path]) -> bool:
    """Whether a file below any of these folders has it."""
    return any(
        secret in written
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
        for written in _written(path)
    )


def _written(path: Path) -> Iterator[bytes]:
    """Yield what a file has between its holes: a machine's disk is nearly all of those."""
    with path.open("rb") as file:
        end = 0
        with contextlib.suppress(OSError):  # there is nothing more
            while True:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
                end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                yield os.pread(file.fileno(), end - start, start)


def places(
    secrets: Mapping[str, bytes], *, pid: int | None, machine: Machine, folders: Iterable[Path] = ()
) -> dict[str, list[str]]:
    """Return where each secret was found: the process `pid` (None: it has ended), "RAM", "storage"."""
    folders = list(folders)
    found: dict[str, list[str]] = {}
    for name, secret in secrets.items():
        found[name] = [
            place
            for place, is_there in (
                ("the process", pid is not None and in_process(secret, pid)),
                ("RAM", in_ram(secret, machine.ram_fd)),
                ("storage", in_files(secret, folders)),
            )
            if is_there
        ]
    return found
