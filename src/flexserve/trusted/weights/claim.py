"""Chunks that a loader thread claimed: memory is found for them, they are filled, and settled.

A claim begins with its chunks LOADING and ends with each of them RESIDENT or ABSENT. Under the loader's lock
is decided and recorded only: the OS is asked for memory, and the disk is read, without it.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterable
from typing import Protocol

from flexserve.platforms.ports import Arena
from flexserve.trusted.memory.flexmem import FlexMem
from flexserve.trusted.weights.chunks import Weights
from flexserve.trusted.weights.fill import Cost, Filler
from flexserve.trusted.weights.job import RestoreJob
from flexserve.trusted.weights.states import ChunkEvent
from flexserve.trusted.weights.streaming import Do, Step, StreamingAllocator

_READ_AHEAD = 64  # chunks of ciphertext asked of the disk ahead of the loaders
_POLL = 0.05  # seconds between two looks for memory that nobody announces


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """The chunks at `positions` of a job's order, which one thread is to bring in."""

    job: RestoreJob
    positions: list[int]


class Queue(Protocol):
    """What claims are taken from, and where it is recorded what became of them (trusted.weights.loader)."""

    @property
    def job(self) -> RestoreJob | None:
        """The job that is followed. Under the lock."""

    def settle(
        self, weights: Weights, chunks: Iterable[int], *, resident: bool, by: RestoreJob | None = None
    ) -> None:
        """Record what became of claimed chunks of job `by`. Under the lock."""

    def put_back(self, weights: Weights, chunk: int) -> None:
        """Give the memory of a chunk that was filled to the OS."""

    def give_up(self, weights: Weights, chunks: list[int], *, keep_grants: bool) -> int:
        """Take the memory of chunks that are EVICTING; return the bytes."""


class ClaimLoader:
    """Brings claims in, each by the thread that calls; thread-safe for different claims.

    `changed` is the loader's lock. `in_turns`: a job's own chunks are not taken while its compute runs.
    """

    def __init__(
        self,
        queue: Queue,
        changed: threading.Condition,
        flexmem: FlexMem,
        filler: Filler,
        *,
        in_turns: bool,
    ) -> None:
        self._queue, self._changed = queue, changed
        self._flexmem, self._filler = flexmem, filler
        self._in_turns = in_turns

    def load(self, claim: Claim) -> None:
        """Load what was claimed: together where memory is there for it, else one by one."""
        job, positions = claim.job, claim.positions
        if len(positions) == 1:
            self._load_one(job, positions[0])
            return
        began, at = time.perf_counter(), {job.plan.order[position]: position for position in positions}
        runs = self._filler.commit_together(job.weights, sorted(at))
        lacking = sorted(at.keys() - {chunk for run in runs for chunk in run})
        with self._changed:
            job.stats.allocate += time.perf_counter() - began
            if lacking:  # somebody else took what was granted
                job.weights.table.apply(ChunkEvent.ABORT, lacking)
                for each in filter(None, (job, self._queue.job)):
                    each.next = each.done
                self._changed.notify_all()
        for run in runs:
            self._load_run(job, [at[chunk] for chunk in run], run)

    def _load_run(self, job: RestoreJob, positions: list[int], run: list[int]) -> None:
        self._read_ahead(job, positions)
        try:
            cost = self._filler.fill_together(job.weights, run)
        except BaseException:  # whichever chunk it is: it will say so by itself
            for position in positions:
                self._load_one(job, position, has_memory=True)
            return
        with self._changed:
            job.stats.add(cost)
            unwanted = [
                chunk for position, chunk in zip(positions, run, strict=True) if job.unwanted(position)
            ]
            wanted = [chunk for chunk in run if chunk not in unwanted]
            self._queue.settle(job.weights, wanted, resident=True, by=job)
        self._put_back_all(job.weights, unwanted)

    def _put_back_all(self, weights: Weights, chunks: list[int]) -> None:
        for chunk in chunks:
            self._queue.put_back(weights, chunk)
        if chunks:
            with self._changed:
                self._queue.settle(weights, chunks, resident=False)
                self._changed.notify_all()  # `retire` waits until nothing is claimed

    def _read_ahead(self, job: RestoreJob, positions: Iterable[int]) -> None:
        for position in positions:
            if position % _READ_AHEAD == 0:
                ahead = position + _READ_AHEAD
                self._filler.read_ahead(job.weights, job.plan.order[ahead : ahead + _READ_AHEAD])

    def _load_one(self, job: RestoreJob, position: int, *, has_memory: bool = False) -> None:
        chunk = job.plan.order[position]
        cost: Cost | None = None
        error: BaseException | None = None
        try:
            if not has_memory:
                self._read_ahead(job, [position])
            cost = self._filler.fill(
                *(job.weights, chunk),
                lambda arena, offset: has_memory or self._commit(job, position, arena, offset),
            )
        except BaseException as problem:  # handed to the request that needs the chunk
            error = problem
        with self._changed:
            unwanted = job.record(position, cost, error, followed=self._queue.job is job)
            if not unwanted:
                self._queue.settle(job.weights, [chunk], resident=cost is not None, by=job)
        self._put_back_all(job.weights, [chunk] if unwanted else [])

    def _commit(self, job: RestoreJob, position: int, arena: Arena, offset: int) -> bool:
        """Put memory behind the chunk at `position` of the job's order. False: it has to wait for others.

        Raises GrantRefusedError when compute needs it, and there is too little to go on at all.
        """
        chunk = self._flexmem.chunk
        allocator = StreamingAllocator(self._flexmem, job, position, in_turns=self._in_turns)
        while not self._filler.commit(arena, offset):
            if position >= job.plan.needed:
                if not self._flexmem.grant(chunk):
                    return False
                continue
            step = self._next_step(job, allocator)
            if step.do is Do.LEAVE:
                return False
            if step.do is Do.REUSE:
                self._queue.give_up(job.weights, [step.victim], keep_grants=True)
            elif step.do is Do.ASK and not self._flexmem.grant(chunk, step.minimum):
                allocator.refused(time.monotonic())
        return True

    def _next_step(self, job: RestoreJob, allocator: StreamingAllocator) -> Step:
        """Return what is to be done for memory; wait, if it is to wait."""
        with self._changed:
            while job.error is None and not job.stale and self._queue.job is job:
                step = allocator.step(time.monotonic())
                if step.wake:
                    self._changed.notify_all()
                if step.do is Do.REUSE:
                    job.weights.table.move(ChunkEvent.REUSE, step.victim)
                if step.do is not Do.WAIT:
                    return step
                self._changed.wait(_POLL)
        return Step(Do.LEAVE)
