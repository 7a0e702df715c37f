"""Which chunks of which arena have memory behind them: the books of every adapter.

Adapters differ in how they get memory; what a legal range is, and what a range may be asked
to do, is the same for all. An adapter decides here under one lock, and acts outside it:

    EMPTY --claim_commit--> BUSY --settle--> COMMITTED --claim_release--> BUSY --settle--> EMPTY

A BUSY chunk is in some thread's hands, so a second thread that asks for it is refused
instead of racing.
"""

from __future__ import annotations

import enum
import threading

from flexserve.errors import InternalError
from flexserve.platforms.ports import Arena


class ChunkState(enum.IntEnum):
    """What is behind a chunk's addresses."""

    EMPTY = 0
    COMMITTED = 1
    BUSY = 2


class ChunkBooks:
    """The state of every chunk of every live arena. Thread-safe.

    Every method raises InternalError for an arena that is not live, and then changes nothing.
    """

    def __init__(self, chunk: int) -> None:
        if chunk <= 0 or chunk & (chunk - 1):
            raise ValueError("a chunk is a power of two")
        self.chunk = chunk
        self._states: dict[Arena, bytearray] = {}
        self._lock = threading.Lock()

    def open(self, arena: Arena) -> None:
        """Start the books of a new arena: all of it is EMPTY."""
        with self._lock:
            self._states[arena] = bytearray(arena.size // self.chunk)

    def close(self, arena: Arena) -> None:
        """End the books of an arena. Raises InternalError while any of it is not EMPTY."""
        with self._lock:
            if any(self._of(arena)):
                raise InternalError("An arena was freed while another thread was using it.")
            del self._states[arena]

    def arenas(self) -> list[Arena]:
        """Return the live arenas."""
        with self._lock:
            return list(self._states)

    def claim_commit(self, arena: Arena, offset: int, length: int) -> None:
        """Take an EMPTY range in hand. Raises InternalError when part of it is not EMPTY."""
        self._move(arena, offset, length, ChunkState.EMPTY, ChunkState.BUSY)

    def claim_release(self, arena: Arena, offset: int, length: int) -> None:
        """Take a COMMITTED range in hand. Raises InternalError when part of it is not."""
        self._move(arena, offset, length, ChunkState.COMMITTED, ChunkState.BUSY)

    def settle(self, arena: Arena, offset: int, length: int, state: ChunkState) -> None:
        """Put a range that the caller has in hand down, in its new `state`."""
        self._move(arena, offset, length, ChunkState.BUSY, state)

    def require_committed(self, arena: Arena, offset: int, length: int) -> None:
        """Raise InternalError unless all of a range (of any alignment) is COMMITTED."""
        with self._lock:
            states = self._of(arena)
            if offset < 0 or length < 0 or offset + length > arena.size:
                raise InternalError(f"{length} bytes at {offset} lie outside an arena of {arena.size}.")
            first, last = offset // self.chunk, -(-(offset + length) // self.chunk)
            if length and states.count(ChunkState.COMMITTED, first, last) != last - first:
                raise InternalError(f"{length} bytes at {offset} are not wholly committed.")

    def committed_runs(self, arena: Arena) -> list[tuple[int, int]]:
        """Return the (offset, length) of each maximal committed range, in order."""
        with self._lock:
            states = self._of(arena)
            runs: list[tuple[int, int]] = []
            start = states.find(ChunkState.COMMITTED)
            while start >= 0:
                end = start + 1
                while end < len(states) and states[end] == ChunkState.COMMITTED:
                    end += 1
                runs.append((start * self.chunk, (end - start) * self.chunk))
                start = states.find(ChunkState.COMMITTED, end)
            return runs

    def _of(self, arena: Arena) -> bytearray:
        try:
            return self._states[arena]
        except KeyError:
            raise InternalError("An arena was used that is not live here.") from None

    def _move(self, arena: Arena, offset: int, length: int, old: ChunkState, new: ChunkState) -> None:
        with self._lock:
            states = self._of(arena)
            if offset % self.chunk or length % self.chunk:
                raise InternalError(f"{length} bytes at {offset} are not whole chunks of {self.chunk}.")
            if offset < 0 or length < 0 or offset + length > arena.size:
                raise InternalError(f"{length} bytes at {offset} lie outside an arena of {arena.size}.")
            first, last = offset // self.chunk, (offset + length) // self.chunk
            if states.count(old, first, last) != last - first:
                raise InternalError(f"{length} bytes at {offset} are not wholly {old.name}.")
            states[first:last] = bytes((new,)) * (last - first)
