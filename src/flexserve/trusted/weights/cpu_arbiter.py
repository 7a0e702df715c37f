"""Who has the cores: compute, or the loaders that bring in what it needs next.

A loader beside compute on a core that both need makes the rest of ggml's threads spin until it is done:
together they took an eighth more CPU than one after the other (decision 6). So where compute has every
core, loaders stand still while it runs.
"""

from __future__ import annotations

import contextlib
import os

# Where loaders do run beside compute, they yield to it: a compute thread preempted inside one of ggml's
# spinning barriers makes all others spin. They still get every cycle that compute leaves.
LOADER_NICE = 10
PREFETCH_NICE = 15  # below the loaders: what runs goes before what may run
_REMEMBERED = 32  # chunks over which it is averaged how much of their time loaders wait


class CpuArbiter:
    """Counts who computes and who loads, and says who may go on.

    It waits for nobody and wakes nobody: its one owner (the loader) does, and serialises access.
    """

    def __init__(self, threads: int) -> None:
        """`threads`: those of compute."""
        self.spare = max(0, len(os.sched_getaffinity(0)) - threads)  # loaders that may run beside compute
        self.idle = 1.0  # part of their time in which loaders wait, lately
        self._computing = False
        self._loading = 0  # loaders that claimed chunks

    def begin_compute(self) -> None:
        """Record that a slice wants its cores: no loader takes another chunk on one of them."""
        self._computing = True

    def end_compute(self) -> None:
        """Record that the slice ended, or waits for another engine."""
        self._computing = False

    @property
    def crowded(self) -> bool:
        """Whether loaders that claimed chunks are on cores of compute."""
        return self._loading > self.spare

    @property
    def free(self) -> bool:
        """Whether one more loader may claim a chunk."""
        return not self._computing or self._loading < self.spare

    def begin_loading(self) -> None:
        """Record that a loader claimed chunks."""
        self._loading += 1

    def end_loading(self, chunks: int, *, busy: float, took: float) -> bool:
        """Record that it is done with `chunks`, which took `took` seconds, `busy` of them on a core.

        Returns whether a slice that waits for its cores can begin.
        """
        if took > 0:  # the clocks are two, and may be coarse
            idle = min(1.0, max(0.0, 1 - busy / took))
            self.idle += (idle - self.idle) * min(1.0, chunks / _REMEMBERED)
        self._loading -= 1
        return self._computing and not self.crowded


def lower_priority(nice: int) -> None:
    """Lower the priority of the calling thread."""
    with contextlib.suppress(OSError):  # a container may forbid it; it is only a preference
        os.setpriority(os.PRIO_PROCESS, 0, nice)  # of this thread
