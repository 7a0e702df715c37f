"""The states of a model's chunks of weights, and the only ways from one to another.

Exactly one party may touch a chunk at any time:

    ABSENT    nobody: there is no memory behind it
    LOADING   the loader that claimed it, and fills it
    RESIDENT  whoever computes: it holds authenticated plaintext
    EVICTING  whoever claimed it to take its memory away

    ABSENT ──claim──▶ LOADING ──loaded──▶ RESIDENT ──evict, reuse──▶ EVICTING ──gone──▶ ABSENT
       ▲                 │
       └──────abort──────┘

A chunk is claimed under the loader's lock, then filled or released without it: LOADING and EVICTING keep all
others away meanwhile. There is no way from LOADING to EVICTING, so nobody takes memory that is being filled,
and none from EVICTING to LOADING, so nobody fills memory that is going. An absent key *is* the illegal
transition.

Two events take a resident chunk. A restore under way plans with what is resident, so an eviction, which comes
from outside, makes its plan void: the epoch grows. A restore that reuses a chunk's memory knows what it took.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from flexserve.errors import InternalError


class ChunkState(enum.IntEnum):
    """Who may touch a chunk."""

    ABSENT = 0
    LOADING = 1
    RESIDENT = 2
    EVICTING = 3


# To compare arrays with: with a member of an enum, numpy takes seventy times as long.
ABSENT, LOADING, RESIDENT, EVICTING = (int(state) for state in ChunkState)


class ChunkEvent(enum.Enum):
    """What can happen to a chunk."""

    CLAIM = "claim"  # a loader is going to fill it
    LOADED = "loaded"  # it is filled and authenticated
    ABORT = "abort"  # it was not filled, or its memory was taken again; there is no memory behind it
    EVICT = "evict"  # its memory is going to be taken: plans made before are void
    REUSE = "reuse"  # its memory is going to serve another chunk of the restore under way
    GONE = "gone"  # there is no memory behind it any more


TRANSITIONS: dict[tuple[ChunkState, ChunkEvent], ChunkState] = {
    (ChunkState.ABSENT, ChunkEvent.CLAIM): ChunkState.LOADING,
    (ChunkState.LOADING, ChunkEvent.LOADED): ChunkState.RESIDENT,
    (ChunkState.LOADING, ChunkEvent.ABORT): ChunkState.ABSENT,
    (ChunkState.RESIDENT, ChunkEvent.EVICT): ChunkState.EVICTING,
    (ChunkState.RESIDENT, ChunkEvent.REUSE): ChunkState.EVICTING,
    (ChunkState.EVICTING, ChunkEvent.GONE): ChunkState.ABSENT,
}

# By event, for speed: each of them has one row.
_ROWS = {event: (old, new) for (old, event), new in TRANSITIONS.items()}


class ChunkTable:
    """The states of `total` chunks, numbered from 0; all of them ABSENT at first.

    Not thread-safe: its one owner (the loader) serialises changes. What it counts may be read without.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._states = bytearray(total)  # ChunkState.ABSENT == 0
        self._writable = np.frombuffer(self._states, np.uint8)
        self._counts = [total, 0, 0, 0]
        self.states: NDArray[np.uint8] = np.frombuffer(memoryview(self._states).toreadonly(), np.uint8)
        self.epoch = 0  # grows when chunks are evicted

    def count(self, state: ChunkState) -> int:
        """Return how many chunks are in `state`."""
        return self._counts[state]

    @property
    def whole(self) -> bool:
        """Whether all chunks are resident."""
        return self._counts[RESIDENT] == self.total

    @property
    def claimed(self) -> int:
        """How many chunks somebody fills or takes away."""
        return self._counts[LOADING] + self._counts[EVICTING]

    def move(self, event: ChunkEvent, chunk: int) -> None:
        """Move one chunk along `event`. Raises as `apply`, and then changes nothing."""
        old, new = _ROWS[event]
        if not 0 <= chunk < self.total or self._states[chunk] != old:
            self._refuse(event, chunk)
        self._states[chunk] = new
        self._count(event, 1)

    def apply(self, event: ChunkEvent, chunks: Sequence[int]) -> None:
        """Move every one of `chunks` along `event`, or raise InternalError and change nothing.

        Raises it when a chunk does not exist, is named twice, or is in a state that has no row for `event`.
        """
        batch = np.asarray(chunks, np.intp)
        if not len(batch):
            return
        if not 0 <= batch.min() <= batch.max() < self.total:
            self._refuse(event, int(batch.min() if batch.min() < 0 else batch.max()))
        if np.bincount(batch).max() > 1:
            raise InternalError(f"{event.value}: a chunk is named twice in one call.")
        old, new = _ROWS[event]
        illegal = np.flatnonzero(self.states[batch] != int(old))
        if len(illegal):
            self._refuse(event, int(batch[illegal[0]]))
        self._writable[batch] = int(new)
        self._count(event, len(batch))

    def _count(self, event: ChunkEvent, moved: int) -> None:
        old, new = _ROWS[event]
        self._counts[old] -= moved
        self._counts[new] += moved
        self.epoch += event is ChunkEvent.EVICT

    def _refuse(self, event: ChunkEvent, chunk: int) -> NoReturn:
        known = 0 <= chunk < self.total
        state = ChunkState(self._states[chunk]).name if known else f"none of {self.total}"
        raise InternalError(f"{event.value}: chunk {chunk} is {state}.")

    def runs(self) -> list[tuple[int, int]]:
        """Return the states as (state, how many chunks on end are in it), in order.

        Any thread: it is what holds at some moment, and may be another already.
        """
        states = self.states.copy()
        edges = [0, *(np.flatnonzero(np.diff(states)) + 1).tolist(), self.total]
        return [(int(states[begin]), end - begin) for begin, end in itertools.pairwise(edges) if end > begin]

    def check(self) -> None:
        """Assert that what is counted is what is there."""
        counted = [self._states.count(state) for state in ChunkState]
        assert counted == self._counts, f"counts drifted: {counted} in the table, {self._counts} kept"
