"""Flex-Mem: recallable secure memory, every chunk of it under the ownership table.

The platform's `SecureMemory` maps and unmaps what it is told; only this knows whether there is memory
behind a chunk. A chunk with memory has a page number of the table, and the table says how far it is:

    no page     nothing behind it
    GRANTED     a commit is under way
    SECURE      committed
    RECALLING   a release is under way

So a range that one thread commits or releases is refused to every other thread, and law 2 (conservation)
can be checked at any moment. Grants come from the normal world through a `Granter`: the secure world never
takes memory that the OS has not agreed to. What is not granted is refused; making way for it is the
business of whoever asked.
"""

from __future__ import annotations

import threading
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flexserve.errors import GrantRefusedError, InternalError
from flexserve.platforms.ports import Arena, Protection, SecureMemory
from flexserve.trusted.heartbeat import Heartbeat
from flexserve.trusted.memory.ownership import OwnershipTable, PageEvent, PageState
from flexserve.units import format_size

REFUSED_HINT = (
    "Free memory, or allow more (--max-memory, `flexserve limit`); `flexserve log` says why it was refused."
)
_NO_PAGE = -1
Mask = NDArray[np.bool_]
Pages = NDArray[np.int32]  # a page number or _NO_PAGE for each chunk


class Granter(Protocol):
    """The normal world as Flex-Mem sees it: it hands memory over and takes it back."""

    def request(self, size: int, minimum: int) -> int:
        """Ask for `size` bytes; return the bytes granted (0: refused).

        `minimum` is what the running request needs to make any progress. May block for the
        other world's answer. Raises PeerError when that world is gone.
        """

    def returned(self, size: int, reason: str = "") -> None:
        """Say that `size` bytes went back unasked, and why, for people."""


class OpenHanded:
    """A granter that agrees to everything: for building images and for measurements in one process."""

    def request(self, size: int, minimum: int) -> int:  # noqa: ARG002
        """Grant `size` bytes."""
        return size

    def returned(self, size: int, reason: str = "") -> None:
        """Record nothing."""


class FlexMem:
    """Arenas of secure memory, committed and released chunk by chunk. Thread-safe.

    Every method that names a range raises InternalError, and changes nothing, when its arena is not live,
    when the range lies outside it, or when memory is not behind all of it as the method needs. Nobody may
    use a view of a range that is being released.
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
        self._pages: dict[Arena, Pages] = {}
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
        """Release all of `arena` and forget it; return the bytes that went back to the OS.

        Raises InternalError while another thread commits or releases part of it.
        """
        size = self.release_all(arena)
        with self._lock:
            if (self._behind(arena) != _NO_PAGE).any():
                raise InternalError("An arena was freed while another thread was using it.")
            del self._pages[arena]
        self._memory.free(arena)
        return size

    def view(self, arena: Arena, offset: int, length: int) -> memoryview:
        """Return a writable view of committed memory (any alignment). It dies with the release."""
        with self._lock:
            self._require_committed(self._touched(arena, offset, length))
        return self._memory.view(arena, offset, length)

    # ---- grants --------------------------------------------------------------------------

    def grant(self, size: int, minimum: int = 0) -> int:
        """Ask the normal world until `size` bytes are granted and unused; return how many are (maybe fewer).

        `minimum`: as `Granter.request` has it, what is granted already included.
        """
        have = self.unused()
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
        """Have the platform give the OS what it has lying ready beyond what is granted and not in use."""
        self._memory.trim(self.bytes_in(PageState.GRANTED))

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
            self._require_granted(length)

    def _require_granted(self, size: int) -> None:
        """Have `size` bytes granted and unused. Raises GrantRefusedError, which says how much lacks."""
        if (have := self.grant(size, minimum=size)) < size:
            raise GrantRefusedError(
                f"{format_size(size)} of memory were not granted.",
                hint=REFUSED_HINT,
                missing=size - have,
            )

    def try_commit(self, arena: Arena, offset: int, length: int) -> bool:
        """Commit out of what is granted already; return False, and change nothing, if it is too little."""
        with self._lock:
            behind = self._whole(arena, offset, length)
            if (behind != _NO_PAGE).any():
                raise InternalError(f"{length} bytes at {offset} have memory already.")
            split = len(self._granted) - len(behind)
            if split < 0:
                return False
            pages, self._granted = self._granted[split:], self._granted[:split]
            behind[:] = pages
        try:
            self._memory.commit(arena, offset, length)
            self._heartbeat.beat()
        except BaseException:
            with self._lock:
                behind[:] = _NO_PAGE
                self._table.apply(PageEvent.RETURN, pages)
                self._normal += pages
            self.report_returned(length)
            raise
        with self._lock:
            self._table.apply(PageEvent.COMMIT, pages)
        return True

    def commit_missing(self, arena: Arena, among: Mask | None = None) -> int:
        """Commit every chunk of `arena` that has no memory; return the bytes added.

        `among` (one bool for each chunk) restricts this, as below, to some of the chunks. Raises as `commit`:
        all of it is asked for at once, so whoever makes way hears how much lacks.
        """
        with self._lock:
            holes = _runs(_chosen(self._behind(arena) == _NO_PAGE, among))
        size = sum(count for _, count in holes) * self.chunk
        self._require_granted(size)
        for first, count in holes:
            self.commit(arena, first * self.chunk, count * self.chunk)
        return size

    def release(self, arena: Arena, offset: int, length: int) -> int:
        """Scrub a committed range and give it to the OS; return its bytes.

        The caller reports them to the normal world (as part of a recall, or as `Returned`).
        """
        return self._take_out(arena, offset, length, keep=False)

    def recycle(self, arena: Arena, offset: int, length: int) -> int:
        """Release a range and keep its grant: the OS agreed to their number, not to their place.

        Returns its bytes, which are there for any commit now. A platform that can move memory has it lying
        ready, scrubbed: never more of it than is granted and not in use.
        """
        return self._take_out(arena, offset, length, keep=True)

    def recycle_all(self, arena: Arena, among: Mask | None = None) -> int:
        """Release whatever of `arena` is committed and keep its grant; return the bytes."""
        return sum(self.recycle(arena, *run) for run in self._committed_runs(arena, among))

    def _take_out(self, arena: Arena, offset: int, length: int, *, keep: bool) -> int:
        """Scrub and unmap a committed range; return its bytes. `keep`: it is granted again at once.

        A range whose release the platform fails stays RECALLING: nobody gets it any more.
        """
        with self._lock:
            behind = self._whole(arena, offset, length)
            self._require_committed(behind)
            pages = behind.tolist()
            self._table.apply(PageEvent.RECALL, pages)
        self._memory.release(arena, offset, length, keep=keep)
        with self._lock:  # once for all steps: nobody else may ask for the pages in between
            behind[:] = _NO_PAGE
            self._table.apply(PageEvent.SCRUBBED, pages)
            if keep:
                self._table.apply(PageEvent.GRANT, pages)
                self._granted += pages
            else:
                self._normal += pages
        return length

    def release_all(self, arena: Arena, among: Mask | None = None) -> int:
        """Release whatever of `arena` is committed; return the bytes."""
        return sum(self.release(arena, *run) for run in self._committed_runs(arena, among))

    def _committed_runs(self, arena: Arena, among: Mask | None) -> list[tuple[int, int]]:
        """Return (offset, length) of each committed run."""
        with self._lock:
            held = _runs(_chosen(self._committed(arena), among))
        return [(first * self.chunk, count * self.chunk) for first, count in held]

    def report_returned(self, size: int, reason: str = "") -> None:
        """Tell the normal world of memory that went back unasked; nothing of it lies ready any more."""
        if size:
            self.settle()
            self._granter.returned(size, reason)

    # ---- looking -------------------------------------------------------------------------

    def committed(self, arena: Arena, among: Mask | None = None) -> int:
        """Return the committed bytes of `arena`."""
        with self._lock:
            return len(_chosen(self._committed(arena), among)) * self.chunk

    def holds(self, arena: Arena, offset: int) -> bool:
        """Return whether there is memory behind the chunk at `offset`."""
        with self._lock:
            return bool(self._committed(arena)[offset // self.chunk])

    def unused(self) -> int:
        """Return the bytes that are granted, and that no commit has taken yet."""
        with self._lock:
            return len(self._granted) * self.chunk

    def ready(self) -> int:
        """Return how many bytes of `unused` lie ready: the OS need not supply them any more."""
        return min(self._memory.ready(), self.unused())

    def bytes_in(self, state: PageState) -> int:
        """Return the bytes whose chunks are in `state`."""
        with self._lock:
            return self._table.count(state) * self.chunk

    def resident(self) -> int:
        """Return the bytes that the OS counts as ours in secure memory."""
        return self._memory.resident()

    def check(self) -> None:
        """Assert conservation, and that arenas and table agree."""
        with self._lock:
            self._table.check()
            behind = np.concatenate([np.empty(0, np.int32), *self._pages.values()])
            behind = behind[behind != _NO_PAGE]
            assert len(set(behind.tolist())) == len(behind), "a page is behind two chunks"
            free = {PageState.NORMAL: len(self._normal), PageState.GRANTED: len(self._granted)}
            for state in PageState:
                counted = free.get(state, 0) + int(np.count_nonzero(self._table.are(state, behind)))
                assert counted == self._table.count(state), f"{state.name} chunks drifted"

    # ---- what is behind a range: under the lock ------------------------------------------------

    def _behind(self, arena: Arena) -> Pages:
        """Return the pages behind the chunks of an arena, to be looked at or changed."""
        try:
            return self._pages[arena]
        except KeyError:
            raise InternalError("An arena was used that is not live here.") from None

    def _touched(self, arena: Arena, offset: int, length: int) -> Pages:
        """Return those of the chunks that a range of any alignment touches."""
        behind = self._behind(arena)
        if offset < 0 or length < 0 or offset + length > arena.size:
            raise InternalError(f"{length} bytes at {offset} lie outside an arena of {arena.size}.")
        return behind[offset // self.chunk : -(-(offset + length) // self.chunk)] if length else behind[:0]

    def _whole(self, arena: Arena, offset: int, length: int) -> Pages:
        """Return those of a range of whole chunks."""
        if offset % self.chunk or length % self.chunk:
            raise InternalError(f"{length} bytes at {offset} are not whole chunks of {self.chunk}.")
        return self._touched(arena, offset, length)

    def _committed(self, arena: Arena) -> Mask:
        return self._table.are(PageState.SECURE, self._behind(arena))

    def _require_committed(self, behind: Pages) -> None:
        if not self._table.are(PageState.SECURE, behind).all():
            raise InternalError("A range was used that is not wholly committed.")


def _chosen(chunks: Mask, among: Mask | None) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    return np.flatnonzero(chunks if among is None else chunks & among)


def _runs(indices: np.ndarray[tuple[int], np.dtype[np.intp]]) -> list[tuple[int, int]]:
    """Return (first, count) of each run of consecutive integers in sorted `indices`."""
    if len(indices) == 0:
        return []
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    return [(int(run[0]), len(run)) for run in np.split(indices, breaks)]
