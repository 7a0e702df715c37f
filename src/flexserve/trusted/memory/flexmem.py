"""Flex-Mem: recallable secure memory, every chunk of it under the ownership table.

The platform's `SecureMemory` maps and unmaps; this keeps the books. Each committed chunk holds
one page number of the table, so that law 2 (conservation) can be checked at any moment. Grants come
from the normal world through a `Granter`: the secure world never takes memory that the OS has not
agreed to. What is not granted is refused; making way for it is the business of whoever asked.
"""

from __future__ import annotations

import threading
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flexserve.errors import GrantRefusedError
from flexserve.platforms.ports import Arena, Protection, SecureMemory
from flexserve.trusted.heartbeat import Heartbeat
from flexserve.trusted.memory.ownership import OwnershipTable, PageEvent, PageState
from flexserve.units import format_size

REFUSED_HINT = (
    "Free memory, or allow more (--max-memory, `flexserve limit`); `flexserve log` says why it was refused."
)
_NO_PAGE = -1
Mask = NDArray[np.bool_]


class Granter(Protocol):
    """The normal world as Flex-Mem sees it: it hands memory over and takes it back."""

    def request(self, size: int, minimum: int) -> int:
        """Ask for `size` bytes; return the bytes granted (0: refused).

        `minimum` is what the running request needs to make any progress. May block for the
        other world's answer. Raises PeerError when that world is gone.
        """

    def returned(self, size: int, held: int) -> None:
        """Say that `size` bytes went back unasked, and that `held` bytes are granted and not in use yet.

        A granter that has memory lying ready beyond `held` gives it back now.
        """


class OpenHanded:
    """A granter that agrees to everything: for building images and for measurements in one process."""

    def request(self, size: int, minimum: int) -> int:  # noqa: ARG002
        """Grant `size` bytes."""
        return size

    def returned(self, size: int, held: int) -> None:
        """Record nothing."""


class FlexMem:
    """Arenas of secure memory, committed and released chunk by chunk. Thread-safe.

    Callers do not commit, use and release the same range at the same time (trusted.weights.residency
    and serving.reclaim see to that); everything else may run concurrently.
    """

    def __init__(
        self, memory: SecureMemory, capacity: int, granter: Granter, heartbeat: Heartbeat | None = None
    ) -> None:
        """`capacity`: bytes of the machine's memory. Each commit is a beat of `heartbeat`."""
        self._memory = memory
        self._granter = granter
        self._heartbeat = heartbeat or Heartbeat()
        self._table = OwnershipTable(max(1, capacity // memory.chunk))
        self._normal = list(range(self._table.total - 1, -1, -1))  # page numbers, lowest last
        self._granted: list[int] = []
        self._committing = 0  # chunks that the platform's memory is about to take
        self._pages: dict[Arena, np.ndarray[tuple[int], np.dtype[np.int32]]] = {}
        self._lock = threading.Lock()
        self.chunk = memory.chunk

    @property
    def protection(self) -> Protection:
        """What protects this memory."""
        return self._memory.protection

    # ---- arenas --------------------------------------------------------------------------

    def reserve(self, size: int) -> Arena:
        """Reserve addresses for `size` bytes; no memory yet."""
        arena = self._memory.reserve(size)
        with self._lock:
            self._pages[arena] = np.full(arena.size // self.chunk, _NO_PAGE, dtype=np.int32)
        return arena

    def free(self, arena: Arena) -> int:
        """Release all of `arena` and forget it; return the bytes that went back to the OS."""
        size = self.release_all(arena)
        with self._lock:
            del self._pages[arena]
        self._memory.free(arena)
        return size

    def view(self, arena: Arena, offset: int, length: int) -> memoryview:
        """Return a writable view of committed memory."""
        return self._memory.view(arena, offset, length)

    # ---- grants --------------------------------------------------------------------------

    def grant(self, size: int, minimum: int = 0) -> int:
        """Ask the normal world until `size` bytes are granted and unused; return how many are (maybe fewer).

        `minimum`: as `Granter.request` has it, what is granted already included.
        """
        have = self.bytes_in(PageState.GRANTED)
        if have < size:
            have += self._ask(size - have, max(0, minimum - have))
        return have

    def return_unused(self) -> int:
        """Give every granted, unused chunk back; return the bytes."""
        with self._lock:
            pages, self._granted = self._granted, []
            self._table.apply(PageEvent.RETURN, pages)
            self._normal += pages
        self.settle()
        return len(pages) * self.chunk

    def settle(self) -> None:
        """Have the granter give back what it has lying ready beyond what is granted."""
        self._granter.returned(0, self._held())

    def _ask(self, size: int, minimum: int) -> int:
        count = min(-(-size // self.chunk), len(self._normal))
        if count == 0:
            return 0
        granted = self._granter.request(count * self.chunk, minimum)
        with self._lock:
            # Held to what was asked, and to whole chunks; what is left over goes straight back.
            count = min(granted // self.chunk, count, len(self._normal))
            pages = [self._normal.pop() for _ in range(count)]
            self._table.apply(PageEvent.GRANT, pages)
            self._granted += pages
        self.report_returned(granted - count * self.chunk)
        return count * self.chunk

    # ---- commit and release --------------------------------------------------------------

    def commit(self, arena: Arena, offset: int, length: int) -> None:
        """Put granted memory behind a range that has none; it reads as zeros.

        Asks the normal world when too little is granted. Raises GrantRefusedError when it
        refuses; then nothing was changed.
        """
        # In a loop: a loader thread may take what was granted before we do.
        while not self.try_commit(arena, offset, length):
            if (have := self.grant(length, minimum=length)) < length:
                raise GrantRefusedError(
                    f"{format_size(length)} of memory were not granted.",
                    hint=REFUSED_HINT,
                    missing=length - have,
                )

    def try_commit(self, arena: Arena, offset: int, length: int) -> bool:
        """Commit out of what is granted already; return False, and change nothing, if it is too little."""
        first, count = offset // self.chunk, length // self.chunk
        with self._lock:
            if count > len(self._granted):
                return False
            split = len(self._granted) - count
            pages, self._granted = self._granted[split:], self._granted[:split]
            self._table.apply(PageEvent.COMMIT, pages)
            self._pages[arena][first : first + count] = pages
            self._committing += count
        try:
            self._memory.commit(arena, offset, length)
            self._heartbeat.beat()
        except BaseException:
            with self._lock:
                self._pages[arena][first : first + count] = _NO_PAGE
                self._table.apply(PageEvent.RECALL, pages)
                self._table.apply(PageEvent.SCRUBBED, pages)
                self._normal += pages
                self._committing -= count
            self.report_returned(length)
            raise
        with self._lock:
            self._committing -= count
        return True

    def commit_missing(self, arena: Arena, among: Mask | None = None) -> int:
        """Commit every chunk of `arena` that has no memory; return the bytes added.

        `among` (one bool for each chunk) restricts this, as below, to some of the chunks.
        """
        with self._lock:
            holes = _runs(_chosen(self._pages[arena] == _NO_PAGE, among))
        for first, count in holes:
            self.commit(arena, first * self.chunk, count * self.chunk)
        return sum(count for _, count in holes) * self.chunk

    def release(self, arena: Arena, offset: int, length: int) -> int:
        """Scrub a committed range and give it to the OS; return its bytes.

        The caller reports them to the normal world (as part of a recall, or as `Returned`).
        """
        pages = self._take_out(arena, offset, length)
        with self._lock:
            self._table.apply(PageEvent.SCRUBBED, pages)
            self._normal += pages
        return length

    def recycle(self, arena: Arena, offset: int, length: int) -> int:
        """Release a range and keep its grant: the OS agreed to their number, not to their place.

        Returns its bytes, which are there for any commit now.
        """
        pages = self._take_out(arena, offset, length, keep=True)
        with self._lock:  # once for both steps: nobody else may ask for the pages in between
            self._table.apply(PageEvent.SCRUBBED, pages)
            self._table.apply(PageEvent.GRANT, pages)
            self._granted += pages
        return length

    def recycle_all(self, arena: Arena, among: Mask | None = None) -> int:
        """Release whatever of `arena` is committed and keep its grant; return the bytes."""
        return sum(self.recycle(arena, *run) for run in self._committed_runs(arena, among))

    def _take_out(self, arena: Arena, offset: int, length: int, *, keep: bool = False) -> list[int]:
        """Scrub and unmap a committed range; return its pages, which are RECALLING now.

        `keep`: they are to be granted again at once.
        """
        first, count = offset // self.chunk, length // self.chunk
        with self._lock:
            pages = [int(page) for page in self._pages[arena][first : first + count]]
            self._table.apply(PageEvent.RECALL, pages)
            self._pages[arena][first : first + count] = _NO_PAGE
        self._memory.release(arena, offset, length, keep=keep)
        return pages

    def release_all(self, arena: Arena, among: Mask | None = None) -> int:
        """Release whatever of `arena` is committed; return the bytes."""
        return sum(self.release(arena, *run) for run in self._committed_runs(arena, among))

    def _committed_runs(self, arena: Arena, among: Mask | None) -> list[tuple[int, int]]:
        """Return (offset, length) of each committed run."""
        with self._lock:
            held = _runs(_chosen(self._pages[arena] != _NO_PAGE, among))
        return [(first * self.chunk, count * self.chunk) for first, count in held]

    def report_returned(self, size: int) -> None:
        """Tell the normal world of memory that went back unasked."""
        if size:
            self._granter.returned(size, self._held())

    # ---- looking -------------------------------------------------------------------------

    def committed(self, arena: Arena, among: Mask | None = None) -> int:
        """Return the committed bytes of `arena`."""
        with self._lock:
            return len(_chosen(self._pages[arena] != _NO_PAGE, among)) * self.chunk

    def holds(self, arena: Arena, offset: int) -> bool:
        """Return whether there is memory behind the chunk at `offset`."""
        with self._lock:
            return bool(self._pages[arena][offset // self.chunk] != _NO_PAGE)

    def bytes_in(self, state: PageState) -> int:
        """Return the bytes whose chunks are in `state`."""
        with self._lock:
            return self._table.count(state) * self.chunk

    def _held(self) -> int:
        """Return the granted bytes that a granter must still have lying ready, if it has them so."""
        with self._lock:
            return (len(self._granted) + self._committing) * self.chunk

    def resident(self) -> int:
        """Return the bytes that the OS counts as ours in secure memory."""
        return self._memory.resident()

    def check(self) -> None:
        """Assert conservation, and that arenas and table agree."""
        with self._lock:
            self._table.check()
            held = sum(int(np.count_nonzero(pages != _NO_PAGE)) for pages in self._pages.values())
            moving = self._table.count(PageState.SECURE) - held
            assert moving == 0, f"{moving} chunks are SECURE in no arena"
            assert len(self._granted) == self._table.count(PageState.GRANTED), "granted pages drifted"


def _chosen(chunks: Mask, among: Mask | None) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    return np.flatnonzero(chunks if among is None else chunks & among)


def _runs(indices: np.ndarray[tuple[int], np.dtype[np.intp]]) -> list[tuple[int, int]]:
    """Return (first, count) of each run of consecutive integers in sorted `indices`."""
    if len(indices) == 0:
        return []
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    return [(int(run[0]), len(run)) for run in np.split(indices, breaks)]
