"""Memory for a chunk when grants are short: a model larger than its memory streams through it.

Each chunk that compute has passed makes room for one ahead, and the generation goes on, slower.
"""

from __future__ import annotations

import dataclasses
import enum

from flexserve.errors import GrantRefusedError
from flexserve.trusted.memory.flexmem import REFUSED_HINT, FlexMem
from flexserve.trusted.memory.ownership import PageState
from flexserve.trusted.weights.job import RestoreJob
from flexserve.trusted.weights.states import ChunkState
from flexserve.units import format_size

_PATIENCE = 0.5  # seconds for memory that others have to turn up, before it counts as too little


class Do(enum.Enum):
    """What a loader can do for the memory of a chunk."""

    RETRY = "retry"  # there may be granted memory now
    REUSE = "reuse"  # take the memory of the step's victim
    ASK = "ask"  # ask the normal world for it
    WAIT = "wait"  # until something changes
    LEAVE = "leave"  # abort: the memory is needed elsewhere first


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """What a loader is to do next."""

    do: Do
    victim: int = -1  # a resident chunk (REUSE)
    minimum: int = 0  # bytes without which the request stands still (ASK)
    wake: bool = False  # others that wait can go on


class StreamingAllocator:
    """Finds memory for the chunk at `position` of a job's order that its graph reads.

    Says what to do, step by step, and does none of it. Under the loader's lock, which guards the job.
    With `in_turns` nothing is taken while compute runs, so that what goes, and when, follows from the
    graph and not from how far compute happens to be.
    """

    def __init__(self, flexmem: FlexMem, job: RestoreJob, position: int, *, in_turns: bool) -> None:
        self._flexmem, self._in_turns = flexmem, in_turns
        self._job, self._position = job, position
        self._waited = False  # the last step was to wait
        self._first = False  # then, compute waited for this very chunk
        self._deadline: float | None = None  # of the patience with a normal world that refused

    def refused(self, now: float) -> None:
        """Record that the normal world had nothing to give, at `now` (monotonic seconds)."""
        self._deadline = now + _PATIENCE

    def step(self, now: float) -> Step:
        """Return the next step. Mutates the job: that memory is short, and how far compute waits.

        Raises GrantRefusedError when compute needs the chunk, and there was too little for a while.
        """
        if self._waited:
            self._waited = False
            if self._deadline is None:
                return Step(Do.RETRY)
            if not self._first:
                return Step(Do.LEAVE)  # the first chunk may need this loader
            if not self._job.stopped or self._obtainable():
                self._deadline = None
                return Step(Do.RETRY)
        return self._look() if self._deadline is None else self._make_room(now)

    def _look(self) -> Step:
        """Take what compute has passed, else ask."""
        job, wake = self._job, not self._job.short
        job.short = True  # compute may be waiting for this loader to finish
        victim = job.plan.passed(job.position, job.weights.states)
        if not job.stopped and (victim is None or self._in_turns):
            return self._wait(wake=wake)  # compute is busy; it will pass something
        if victim is not None:
            return Step(Do.REUSE, victim=victim, wake=wake)
        waited_for = self._position == job.done
        return Step(Do.ASK, minimum=self._flexmem.chunk if waited_for else 0, wake=wake)

    def _make_room(self, now: float) -> Step:
        """Take what was loaded too early, for the chunk that compute needs first."""
        job, self._first = self._job, self._position == self._job.done
        job.goal = min(job.goal, job.plan.wanted(job.position))  # no room for a good stretch
        if job.done >= job.goal:
            return self._wait(wake=True)  # compute can go on, and will pass something
        if self._first and (victim := job.early()) is not None:
            self._deadline = None
            return Step(Do.REUSE, victim=victim)
        if self._first and self._deadline is not None and now > self._deadline and not self._obtainable():
            size = job.least * self._flexmem.chunk
            raise GrantRefusedError(
                f"This model needs {format_size(size)} of memory at once, which were not granted.",
                hint=REFUSED_HINT,
                missing=job.lacking * self._flexmem.chunk,
            )
        return self._wait(wake=False)

    def _wait(self, *, wake: bool) -> Step:
        self._waited = True
        return Step(Do.WAIT, wake=wake)

    def _obtainable(self) -> bool:
        """Return whether there is memory that can be had: passed, granted, or with another loader."""
        job = self._job
        if self._flexmem.bytes_in(PageState.GRANTED):
            return True
        if job.plan.passed(job.position, job.weights.states) is not None:
            return True
        held = sum(self._flexmem.committed(part.arena) for part in job.weights.parts)
        return held > job.weights.table.count(ChunkState.RESIDENT) * self._flexmem.chunk
