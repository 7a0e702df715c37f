"""In which order to bring weights back, and how far compute may go meanwhile.

The compute graph is the only source: walking its nodes in execution order gives, for each node,
the chunks it reads. The order of first use is the best load order (a pipeline that computes
in order can start node n as soon as everything first used up to n is there), and it needs no
knowledge of the model's architecture.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flexserve.trusted.weights.states import RESIDENT

_STRETCHES = 3
_IDLE = 0.25  # loaders that wait for less of their time leave nothing to hide


def stretch(missing: int, *, spare: int, idle: float) -> int:
    """Return of how many `missing` chunks compute that had to stop waits for before it goes on.

    `spare` cores are left beside compute; `idle` is the part of the loaders' time in which they wait
    for the disk. Loading and computing hide each other only where one leaves a core to the other.
    Where neither does, together they take the sum of their CPU seconds in whatever order, and each
    change from one to the other costs cold caches and spinning threads: so there is one change.
    Elsewhere a third is long enough for the changes not to matter, and leaves little unhidden.
    """
    return missing if spare == 0 and idle < _IDLE else missing // _STRETCHES


@dataclasses.dataclass(frozen=True, slots=True)
class Needs:
    """What a graph reads: use i is node `node[i]` reading chunk `chunk[i]`; `node` ascends."""

    nodes: int  # nodes in the graph
    node: NDArray[np.int32]
    chunk: NDArray[np.int32]


class RestorePlan:
    """The load order for one run over a graph, from node `start` on. Immutable.

    `order` lists all chunks that the graph reads, by first use (`needed` counts them, `missing`
    those that are not resident), then what else is not resident of the model, in its usual order,
    so that what one graph happens not to read is there for the next. Those that are resident are
    in it too, since they may have to make room for others and come back.
    """

    def __init__(
        self, needs: Needs, states: NDArray[np.uint8], start: int, usual: Sequence[int] = ()
    ) -> None:
        size = len(states)
        self.nodes = needs.nodes
        self.last_use = np.full(size, -1, dtype=np.int32)
        self.last_use[needs.chunk] = needs.node  # ascending: the last write wins
        self._first_use = np.full(size, needs.nodes, dtype=np.int32)  # never read: beyond all nodes
        self._first_use[needs.chunk[::-1]] = needs.node[::-1]
        ahead = needs.node >= start
        chunk, node = needs.chunk[ahead], needs.node[ahead]
        unique, first = np.unique(chunk, return_index=True)
        by_use = np.argsort(first, kind="stable")
        unique, first = unique[by_use], first[by_use]
        self.order: list[int] = unique.tolist()
        self._due: list[int] = node[first].tolist()
        self.needed = len(self.order)
        self.missing = int(np.count_nonzero(states[unique] != RESIDENT))
        if self.missing < np.count_nonzero(states != RESIDENT):
            named = set(self.order)
            rest = usual or range(size)
            self.order += [g for g in rest if states[g] != RESIDENT and g not in named]

    def ready(self, done: int) -> int:
        """Return n such that nodes before n read nothing beyond the first `done` of `order`."""
        return self._due[done] if done < self.needed else self.nodes

    def wanted(self, node: int) -> int:
        """Return how many of `order` must be resident before node `node` can run."""
        return bisect.bisect_right(self._due, node)

    def passed(self, position: int, states: NDArray[np.uint8]) -> int | None:
        """Return the resident chunk that compute at node `position` will want again last.

        A graph runs over and over from its first node: what it never reads can go first, then
        what its next run reads last. None when nothing that was passed is resident.
        """
        candidates = np.flatnonzero((states == RESIDENT) & (self.last_use < position))
        if len(candidates) == 0:
            return None
        return int(candidates[np.argmax(self._first_use[candidates])])


def usual_order(needs: Needs, size: int) -> list[int]:
    """Return all `size` chunks: those the graph reads by first use, then the others."""
    unique, first = np.unique(needs.chunk, return_index=True)
    used: list[int] = unique[np.argsort(first, kind="stable")].tolist()
    return used + sorted(set(range(size)) - set(used))
