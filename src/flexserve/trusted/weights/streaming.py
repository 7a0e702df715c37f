"""StreamingAllocator for a chunk when grants are short: a model larger than its memory streams through it.

Each chunk that compute has passed makes room for one ahead, and the generation goes on, slower.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

from flexserve.errors import GrantRefusedError
from flexserve.platforms.ports import Arena
from flexserve.trusted.memory.flexmem import REFUSED_HINT, FlexMem
from flexserve.trusted.memory.ownership import PageState
from flexserve.trusted.weights.chunks import Weights
from flexserve.trusted.weights.job import RestoreJob
from flexserve.trusted.weights.states import ChunkEvent, ChunkState
from flexserve.units import format_size

_PATIENCE = 0.5  # seconds for memory that others have to turn up, before it counts as too little


class Follows(Protocol):
    """Whether the loaders still follow a job; called under the residency's lock."""

    def __call__(self, job: RestoreJob) -> bool:
        """Return it."""


class Aborted(Protocol):
    """How the residency learns that chunks claimed have no memory any more."""

    def __call__(self, weights: Weights, chunks: list[int]) -> None:
        """Record that they are absent."""


class StreamingAllocator:
    """Finds memory for the chunks of the job that the loaders follow.

    Shares the residency's lock (`changed`). With `in_turns` nothing is taken while compute runs, so that
    what goes, and when, follows from the graph and not from how far compute happens to be.
    """

    def __init__(
        self,
        flexmem: FlexMem,
        changed: threading.Condition,
        *,
        in_turns: bool,
        follows: Follows,
        aborted: Aborted,
    ) -> None:
        self._flexmem, self._changed, self._in_turns = flexmem, changed, in_turns
        self._follows, self._abort = follows, aborted

    def commit(self, job: RestoreJob, position: int, arena: Arena, offset: int) -> bool:
        """Commit the chunk at `position` of the job's order. False: not needed now, and no room for it.

        Raises GrantRefusedError when compute needs it, and there is too little to go on at all.
        """
        chunk = self._flexmem.chunk
        while not self._flexmem.try_commit(arena, offset, chunk):
            if position >= job.plan.needed:
                if not self._flexmem.grant(chunk):
                    return False
                continue
            with self._changed:
                if not job.short:
                    job.short = True
                    self._changed.notify_all()  # compute may be waiting for us to finish
                if not self._follows(job):
                    return False
                victim = job.plan.passed(job.position, job.weights.states)
                if not job.stopped and (victim is None or self._in_turns):
                    self._changed.wait(0.05)  # compute is busy; it will pass something
                    continue
                minimum = chunk if position == job.done else 0  # compute waits for this very chunk
                self._take(job, victim)
            if victim is not None:
                self._recycle(job, victim)
            elif not self._flexmem.grant(chunk, minimum) and not self._make_room(job, position):
                return False
        return True

    def _make_room(self, job: RestoreJob, position: int) -> bool:
        """Take memory from what was loaded too early for the chunk that compute needs first.

        True: look again for memory. False: this is not that chunk. Raises GrantRefusedError
        when there was nothing to take for a while.
        """
        deadline = time.monotonic() + _PATIENCE
        with self._changed:
            while True:
                if not self._follows(job):
                    return False
                first = position == job.done
                job.goal = min(job.goal, job.plan.wanted(job.position))  # no room for a good stretch
                if first and job.done < job.goal and (victim := job.early()) is not None:
                    self._take(job, victim)
                    break
                if job.done >= job.goal:
                    self._changed.notify_all()  # compute can go on, and will pass something
                elif first and time.monotonic() > deadline and not self._obtainable(job):
                    size = job.least * self._flexmem.chunk
                    raise GrantRefusedError(
                        f"This model needs {format_size(size)} of memory at once, which were not granted.",
                        hint=REFUSED_HINT,
                        missing=job.lacking * self._flexmem.chunk,
                    )
                self._changed.wait(0.05)
                if not first or not job.stopped or self._obtainable(job):
                    return first  # let go of any other: the first one may need a loader
        self._recycle(job, victim)
        return True

    def _obtainable(self, job: RestoreJob) -> bool:
        """Return whether there is memory that can be had: passed, granted, or with another loader."""
        states = job.weights.states
        if self._flexmem.bytes_in(PageState.GRANTED) or job.plan.passed(job.position, states) is not None:
            return True
        held = sum(self._flexmem.committed(part.arena) for part in job.weights.parts)
        return held > job.weights.table.count(ChunkState.RESIDENT) * self._flexmem.chunk

    def _take(self, job: RestoreJob, victim: int | None) -> None:
        if victim is not None:
            job.weights.table.move(ChunkEvent.REUSE, victim)

    def _recycle(self, job: RestoreJob, victim: int) -> None:
        part, index, _ = job.weights.locate(victim)
        chunk = self._flexmem.chunk
        self._flexmem.recycle(job.weights.parts[part].arena, index * chunk, chunk)
        self._abort(job.weights, [victim])
