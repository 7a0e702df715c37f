"""Recallable memory on the emulated TrustZone machine: pages that its Linux allocates and cannot reach.

An arena is a PROT_NONE reservation, as on Linux. Commit gets pages from the guest's kernel, has the
monitor make them SECURE, maps them (the machine's DRAM is a shared file) and clears what the OS left
in them; release unmaps them and offers them back, and the monitor clears them before the OS sees
them. Addresses stay put while pages come and go; which pages are behind an address is nobody's
concern but this module's.
"""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from flexserve.errors import GrantRefusedError, InternalError
from flexserve.platforms.linux import mman, reservation
from flexserve.platforms.ports import Arena, Protection
from flexserve.platforms.trustzone.guest_pages import GuestPages
from flexserve.platforms.trustzone.mailbox import Mailbox
from flexserve.platforms.trustzone.pool import Run, count, cut, merged
from flexserve.platforms.trustzone.ram import PAGE, Ram
from flexserve.units import MIB, align_up, format_size

DEFAULT_CHUNK = 2 * MIB  # one call of the monitor, and a block that Linux likes to have free
_MAPPINGS_OF_OTHERS = 4096  # libraries, stacks, heaps, reservations: generous for a Python process
_USUAL_LIMIT = 65530  # vm.max_map_count, where nobody tells


class TrustZoneMemory:
    """The SecureMemory port over the pages of a guest."""

    def __init__(self, pages: GuestPages, chunk: int = DEFAULT_CHUNK) -> None:
        if chunk <= 0 or chunk % PAGE or chunk % mman.PAGE or chunk & (chunk - 1):
            raise ValueError("a chunk is whole pages, and a power of two")
        self._pages = pages
        self.chunk = chunk
        self._behind: dict[Arena, dict[int, list[Run]]] = {}  # chunk → its pages, in order
        self._lock = threading.Lock()
        self._mapped = 0  # runs
        self._most = _MOST_RUNS

    @property
    def protection(self) -> Protection:
        """The label of what this memory is protected by."""
        return Protection(
            name="trustzone-emulated",
            protected=True,
            summary=(
                "The guest's kernel, its programs and its devices cannot reach model memory; whoever "
                "controls the host that emulates the machine can."
            ),
        )

    def reserve(self, size: int) -> Arena:
        """Reserve addresses for `size` bytes, rounded up to chunks. Uses no memory.

        Raises NormalWorldError when the address space is refused.
        """
        size = align_up(max(size, 1), self.chunk)
        arena = Arena(base=reservation.reserve(size, self.chunk), size=size)
        with self._lock:
            self._behind[arena] = {}
        return arena

    def commit(self, arena: Arena, offset: int, length: int) -> None:
        """Put pages of the guest behind a range that has none; it reads as zeros.

        Raises GrantRefusedError when the guest's kernel refuses, answers wrongly or does not answer;
        then every chunk is as it was.
        """
        if length:
            self._fill(arena, offset, self._pages.take(length // PAGE))

    def release(self, arena: Arena, offset: int, length: int, *, keep: bool = False) -> None:
        """Give the pages of a committed range back; the monitor scrubs them before the OS sees them.

        Returns when the OS has them, or has not cared to take them for seconds. With `keep` they stay
        SECURE, and are the first that a commit gets.
        """
        if not length:
            return
        runs = self._empty(arena, offset, length)
        if keep:
            self._pages.keep(runs)
        else:
            self._pages.give_back(runs)

    def trim(self, kept: int) -> None:
        """Give the guest the pages that wait in the pool beyond `kept` bytes, without waiting for it."""
        self._pages.trim(kept // PAGE)

    def ready(self) -> int:
        """Return 0: a commit asks the monitor, which takes as long for pages that wait in the pool."""
        return 0

    def view(self, arena: Arena, offset: int, length: int) -> memoryview:
        """Return a writable view of committed memory (any alignment).

        The view must not be used after the release of its range: the addresses fault then.
        """
        return mman.view(arena.base + offset, length)

    def free(self, arena: Arena) -> None:
        """Give the addresses back. The arena is dead after."""
        with self._lock:
            del self._behind[arena]
        mman.munmap(arena.base, arena.size)

    def resident(self) -> int:
        """Return the bytes that the monitor's own table keeps from the OS for this process."""
        return self._pages.resident()

    def behind(self, address: int, length: int) -> list[Run]:
        """Return the machine's pages behind `length` bytes at `address`, in order; both are whole pages.

        Raises InternalError when part of it is not committed memory.
        """
        with self._lock:
            arena = next((a for a in self._behind if a.base <= address < a.base + a.size), None)
            if arena is None:
                raise InternalError(f"{address:#x} is in no arena.")
            first, skipped = divmod(address - arena.base, self.chunk)
            last = (address - arena.base + length - 1) // self.chunk
            behind = self._behind[arena]
            if any(number not in behind for number in range(first, last + 1)):
                raise InternalError(f"{length} bytes at {address:#x} are not wholly committed.")
            runs = [run for number in range(first, last + 1) for run in behind[number]]
        if skipped:
            runs = [run for portion in list(cut(runs, skipped // PAGE))[1:] for run in portion]
        return next(cut(runs, length // PAGE))

    # ---- mapping --------------------------------------------------------------------------------

    def _fill(self, arena: Arena, offset: int, runs: list[Run]) -> None:
        """Map `runs`, one behind the other, over a range of the arena, and clear them."""
        address, length = arena.base + offset, count(runs) * PAGE
        portions = list(cut(runs, self.chunk // PAGE))
        mappings = sum(map(len, portions))
        try:
            self._reckon(mappings)
            self._map(address, runs)
        except BaseException:
            reservation.put_back(address, length)
            self._reckon(-mappings)
            self._pages.give_back(runs)
            raise
        mman.zero(address, length)  # SECURE by now: the OS, whose leavings these are, cannot look on
        with self._lock:
            first = offset // self.chunk
            self._behind[arena].update(enumerate(portions, first))

    def _map(self, address: int, runs: list[Run]) -> None:
        start, length = address, count(runs) * PAGE
        try:
            for run in merged(runs):
                self._pages.ram.map(run.ipa, address, run.size)
                address += run.size
            mman.madvise(start, length, mman.MADV_DONTFORK)  # a child's mapping would outlive the release
        except OSError as error:
            raise GrantRefusedError(
                f"The host's OS would not map {format_size(length)} of the machine ({error.strerror}).",
                hint="Free memory on the host.",
            ) from error

    def _empty(self, arena: Arena, offset: int, length: int) -> list[Run]:
        """Unmap a range and return its pages."""
        reservation.put_back(arena.base + offset, length)
        with self._lock:
            chunks = range(offset // self.chunk, (offset + length) // self.chunk)
            portions = [self._behind[arena].pop(chunk) for chunk in chunks]
        self._reckon(-sum(map(len, portions)))
        return list(merged(run for portion in portions for run in portion))

    def _reckon(self, mappings: int) -> None:
        """Count mappings that come or go. Raises GrantRefusedError, having counted, beyond the limit."""
        with self._lock:
            self._mapped += mappings
            excess = mappings > 0 and self._mapped > self._most
        if excess:
            raise GrantRefusedError(
                f"The guest's free memory is in pieces too small to map: {self._mapped} of {self._most}.",
                hint=f"Run `sysctl -w vm.max_map_count={4 * self._mapped}` as root on the host.",
                code="fragmented",
            )


def pages_of(ram_fd: int, doorbell_fd: int) -> GuestPages:
    """Return the pages of the machine behind these descriptors, not begun yet."""
    ram = Ram(ram_fd)
    return GuestPages(ram, Mailbox(ram, socket.socket(fileno=doorbell_fd)))


def _most_runs() -> int:
    """Return how many runs may be mapped: each may split the reservation it lies in."""
    try:
        limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        limit = _USUAL_LIMIT
    return max(0, limit - _MAPPINGS_OF_OTHERS) // 2


_MOST_RUNS = _most_runs()  # now: a secure world in its sandbox cannot look there any more
