"""Who has the cores: compute, or the loaders that bring in what it needs next.

A loader beside compute on a core that both need makes the rest of ggml's threads spin until it is done:
together they took an eighth more CPU than one after the other (decision 6). So where compute has every
core, loaders stand still while it runs.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

from flexserve.trusted.weights.job import RestoreJob

# Where loaders do run beside compute, they yield to it: a compute thread preempted inside one of ggml's
# spinning barriers makes all others spin. They still get every cycle that compute leaves.
_LOADER_NICE = 10
_REMEMBERED = 32  # chunks over which it is averaged how much of their time loaders wait
_CLAIMED = 0.02  # seconds: longer than it takes to fill a chunk


class CpuArbiter:
    """Shares them out to compute's threads and the loaders of a residency, whose lock (`changed`) it shares.

    `job` returns what the loaders follow; it may be called without the lock.
    """

    def __init__(
        self, changed: threading.Condition, threads: int, job: Callable[[], RestoreJob | None]
    ) -> None:
        self._changed, self._job = changed, job
        self.spare = max(0, len(os.sched_getaffinity(0)) - threads)  # loaders that may run beside compute
        self.idle = 1.0  # part of their time in which loaders wait, lately
        self._computing = False
        self._loading = 0  # loaders that claimed a chunk

    # ---- compute ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Keep the cores for a slice of compute."""
        self._computing = True
        try:
            self._let_loaders_finish()
            yield
        finally:
            self._computing = False
            job = self._job()
            if job is not None and job.loadable:
                with self._changed:
                    self._changed.notify_all()

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Leave the cores to the loaders while a slice that runs waits for another engine."""
        with self._changed:
            self._computing = False
            self._changed.notify_all()
        try:
            yield
        finally:
            self._computing = True
            self._let_loaders_finish()

    def _let_loaders_finish(self) -> None:
        """Wait for claimed chunks where compute needs their cores; no loader takes another meanwhile.

        Not where loaders wait for compute, which has to pass weights first whose memory they can use; and
        not for long, since they may wait for the normal world, which may be waiting for this slice to end.
        """
        if self._loading > self.spare:
            with self._changed:
                self._changed.wait_for(self._clear, _CLAIMED)

    def _clear(self) -> bool:
        job = self._job()
        return self._loading <= self.spare or job is None or job.short

    # ---- loaders: under the lock ------------------------------------------------------------------

    @property
    def free(self) -> bool:
        """Whether one more loader may claim a chunk."""
        return not self._computing or self._loading < self.spare

    def begin_loading(self) -> None:
        """Record that a loader claimed a chunk."""
        self._loading += 1

    def end_loading(self, idle: float) -> None:
        """Record that it is done with it, and in what part of that time the loader waited."""
        self.idle += (idle - self.idle) / _REMEMBERED
        self._loading -= 1
        if self._computing and self._loading <= self.spare:
            self._changed.notify_all()


def yield_to_compute() -> None:
    """Lower the priority of the calling thread to a loader's."""
    with contextlib.suppress(OSError):  # a container may forbid it; it is only a preference
        os.setpriority(os.PRIO_PROCESS, 0, _LOADER_NICE)  # of this thread
