"""Which nodes of a compute graph another engine may do, and what can be computed meanwhile.

A graph is computed in the order of its nodes, and its memory is laid out for that order: a tensor that
nobody reads any more makes room for a later one. So data flow alone does not say what may be computed
before its turn. Memory does: a node may run before another one that stands before it exactly when neither
writes what the other reads or writes. Views, in-place operations and a KV cache that is written through
one tensor and read through another need no rules of their own then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

# Fewer rows are a matter of reading weights, at which the CPU is as good as any; smaller products take less
# time than their handing over.
LEAST_ROWS = 32
LEAST_WORK = 1 << 20  # multiplications
WINDOW = 64  # nodes ahead that are looked at

_JOB_SECONDS = 0.01  # that a job should take: the normal world waits for one before it has its NPU back
_JOB_WORK = 1 << 26  # multiplications, while it is not known how long they take …
_JOB_LEAST = 1 << 22  # … and even when they take long: starting a job has its price, too


class Conflicts:
    """Which nodes of a graph must keep their order.

    `reads` (nodes, sources, 2) and `writes` (nodes, 2) are what each node touches, as byte ranges
    [start, stop); an empty one touches nothing.
    """

    def __init__(self, reads: NDArray[np.uint64], writes: NDArray[np.uint64]) -> None:
        count = len(writes)
        # Bit j of number i: node j, up to WINDOW nodes behind node i, must not run before it.
        self._behind = [0] * count
        for distance in range(1, min(WINDOW, count - 1) + 1):
            first, second = slice(0, count - distance), slice(distance, count)
            conflict = _overlap(writes[first, None], writes[second, None])
            conflict |= _overlap(writes[first, None], reads[second])
            conflict |= _overlap(reads[first], writes[second, None])
            for node in np.flatnonzero(conflict).tolist():
                self._behind[node] |= 1 << (node + distance)

    def independent(
        self, pending: Sequence[int], among: Sequence[int], leave: Collection[int] = ()
    ) -> list[int]:
        """Return which nodes of `among` may run before `pending`, which stand before them.

        In order; each may also run before those of `among` that are left behind, as `leave` are in any
        case. Nodes more than WINDOW behind the first of `pending` are not considered.
        """
        bound = 0
        for node in pending:
            bound |= self._behind[node]
        free: list[int] = []
        for node in among:
            if node > pending[0] + WINDOW:
                break
            if bound >> node & 1 or node in leave:
                bound |= self._behind[node]
            else:
                free.append(node)
        return free


def _overlap(some: NDArray[np.uint64], others: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return for each node whether any range of (nodes, n, 2) shares a byte with any of the other ones."""
    start = np.maximum(some[:, :, None, 0], others[:, None, :, 0])
    stop = np.minimum(some[:, :, None, 1], others[:, None, :, 1])
    return np.asarray((start < stop).any(axis=(1, 2)))


@dataclasses.dataclass(slots=True)
class Pace:
    """How fast somebody multiplies: seconds for a multiplication, as measured lately; None: unknown."""

    seconds: float | None = None

    def note(self, work: int, seconds: float) -> None:
        """Record that `work` multiplications took so long."""
        measured = seconds / max(1, work)
        self.seconds = measured if self.seconds is None else (self.seconds + measured) / 2

    def expected(self, work: int) -> float | None:
        """Return the seconds that `work` multiplications will take."""
        return None if self.seconds is None else work * self.seconds


def job_work(pace: Pace) -> int:
    """Return how many multiplications a job should have for somebody of this pace."""
    if not pace.seconds:  # unknown, or less than the clock can tell
        return _JOB_WORK
    return max(_JOB_LEAST, int(_JOB_SECONDS / pace.seconds))


def shared_out(work: Sequence[int], other: Pace, cpu: Pace) -> int:
    """Return how many of the independent products of `work` multiplications the other engine should do.

    The first at least: it is the one asked. The CPU does those behind, at the same time, as far as it is
    done no later with them than the other engine would be; one of several while that is not known.
    """
    count = len(work)
    if other.seconds is None or cpu.seconds is None:
        return max(1, count - 1)
    while count > 1 and sum(work[count - 1 :]) * cpu.seconds <= sum(work[:count]) * other.seconds:
        count -= 1
    return count


def cut(columns: int, most: int, multiple: int = 32) -> Iterator[tuple[int, int]]:
    """Yield (first, count) of portions of `columns` of at most `most`, all but the last whole multiples."""
    step = max(multiple, most // multiple * multiple)
    for first in range(0, columns, step):
        yield first, min(step, columns - first)
