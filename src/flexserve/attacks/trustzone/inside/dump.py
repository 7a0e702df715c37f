"""Everything that the normal world has of a conversation, searched for what is secret.

That is: the memory of the process that drives the guest, the guest's RAM but what is SECURE (or was, and is
not overwritten yet), which has the ring of messages, too, and the guest's storage. Each is read once, in
pieces, for all secrets: a machine has gigabytes, and most of them are holes or zeros.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from flexserve.emulator.machine import Machine
from flexserve.platforms.linux import kernel_views
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.layout import states_offset
from flexserve.platforms.trustzone.ram import PAGE, Ram
from flexserve.units import MIB

#: What must not be found, by name; each as one or more texts.
Secrets = Mapping[str, Sequence[bytes]]

#: How a guest's RAM is searched: `in_ram` or `anywhere_in_ram`.
Search = Callable[[Secrets, int], set[str]]

_OUT_OF_REACH = frozenset({abi.PageState.SECURE, abi.PageState.RECALLING})
_PIECE = MIB
_ZEROS = bytes(8 * MIB)  # more than any piece


def in_process(secrets: Secrets, pid: int) -> set[str]:
    """Return which are anywhere in what a process has mapped. Raises OSError where nobody may look."""
    pieces = kernel_views.pieces_of(pid, overlap=_longest(secrets))
    return {name for name, _, _ in _found(secrets, ((address, data) for _, address, data in pieces))}


def in_ram(secrets: Secrets, ram_fd: int) -> set[str]:
    """Return which are in a guest's RAM, which `ram_fd` is, in a page that is within the OS's reach."""
    ram = Ram(ram_fd)
    with ram.window(states_offset(ram.size), ram.pages) as states:

        def is_within_reach(place: int, text: bytes) -> bool:
            pages = (place // PAGE, (place + len(text) - 1) // PAGE)
            if all(states[page] in _OUT_OF_REACH for page in pages):
                return False
            # It may have been SECURE when it was read, and was overwritten and given back since.
            return os.pread(ram_fd, len(text), place) == text

        found = _found(secrets, _written(ram_fd, _longest(secrets)))
        return {name for name, place, text in found if is_within_reach(place, text)}


def anywhere_in_ram(secrets: Secrets, ram_fd: int) -> set[str]:
    """Return which are in a guest's RAM at all, as somebody with a probe on its wires would see."""
    return {name for name, _, _ in _found(secrets, _written(ram_fd, _longest(secrets)))}


def places_in_ram(text: bytes, ram_fd: int) -> Iterator[int]:
    """Yield where in a guest's RAM a text is, in bytes from its start."""
    for _, place, _ in _found({"": [text]}, _written(ram_fd, len(text) - 1)):
        yield place


def states_of(ram_fd: int) -> bytes:
    """Return the state of each page of a guest's RAM, by the monitor's table."""
    ram = Ram(ram_fd)
    with ram.window(states_offset(ram.size), ram.pages) as states:
        return bytes(states)


def in_files(secrets: Secrets, paths: Iterable[Path]) -> set[str]:
    """Return which a file has that is one of these paths, or below one."""
    found: set[str] = set()
    for path in (each for start in paths for each in (start, *start.rglob("*"))):
        if path.is_file():
            with path.open("rb") as file:
                pieces = _written(file.fileno(), _longest(secrets))
                found.update(name for name, _, _ in _found(secrets, pieces))
    return found


def by_secret(secrets: Secrets, places: Iterable[tuple[str, set[str]]]) -> dict[str, list[str]]:
    """Return for each secret where it was found, of pairs of a place and what was found there."""
    places = list(places)
    return {name: [place for place, found in places if name in found] for name in secrets}


def places(
    secrets: Secrets, *, pid: int | None, machine: Machine, folders: Iterable[Path] = ()
) -> dict[str, list[str]]:
    """Return where each secret was found: the process `pid` (None: it has ended), "RAM", "storage"."""
    return by_secret(
        secrets,
        (
            ("the process", set() if pid is None else in_process(secrets, pid)),
            ("RAM", in_ram(secrets, machine.ram_fd)),
            ("storage", in_files(secrets, folders)),
        ),
    )


def _longest(secrets: Secrets) -> int:
    """Return how much pieces have to overlap, in bytes, so that no secret is cut by all of them."""
    return max(len(text) for texts in secrets.values() for text in texts) - 1


def _found(secrets: Secrets, pieces: Iterable[tuple[int, bytes]]) -> Iterator[tuple[str, int, bytes]]:
    """Yield which secret is where, and as which text."""
    for place, data in pieces:
        if _ZEROS.startswith(data):  # many times as fast as a search
            continue
        for name, texts in secrets.items():
            for text in texts:
                at = data.find(text)
                while at >= 0:
                    yield name, place + at, text
                    at = data.find(text, at + 1)


def _written(descriptor: int, overlap: int) -> Iterator[tuple[int, bytes]]:
    """Yield what a file has between its holes, and where; with `overlap` bytes before and behind each."""
    for start, end in _extents(descriptor):
        for place in range(max(start - overlap, 0), end, _PIECE):
            yield place, os.pread(descriptor, min(_PIECE, end - place) + overlap, place)


def _extents(descriptor: int) -> Iterator[tuple[int, int]]:
    """Yield where a file has something: a machine's disk is nearly all holes."""
    end = 0
    with contextlib.suppress(OSError):  # there is nothing more
        while True:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            yield start, end
