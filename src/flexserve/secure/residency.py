"""Residency: which granules of a model's weights are in memory, and bringing them back in time.

The plain loop is `compute`: make a plan from the graph, let loader threads follow it, and run
each stretch of nodes as soon as what it reads is there. Loader threads commit a granule, read
its ciphertext straight into it and decrypt in place; the interpreter lock is held only for the
decryption, so page allocation in the kernel, which dominates, runs in parallel.

When the normal world grants less than the graph needs, the loaders stream: each granule that
compute has passed makes room for one ahead, and the generation goes on, slower.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from flexserve.core.pages import PageState
from flexserve.core.restore import ABSENT, LOADING, RESIDENT, Needs, RestorePlan, usual_order
from flexserve.errors import CancelledError, GrantRefusedError
from flexserve.platforms.ports import Arena
from flexserve.secure.flexmem import FlexMem
from flexserve.secure.gate import Gate
from flexserve.secure.job import RestoreJob, RestoreStats
from flexserve.secure.weights import Weights

# Loaders yield the cores to compute: a compute thread preempted inside one of ggml's spinning
# barriers makes all others spin. They still get every cycle that compute leaves.
_LOADER_NICE = 10
_STRETCHES = 12  # compute that had to stop goes on after this part of what is missing
_PATIENCE = 0.5  # seconds for memory that is in other hands to turn up, before it counts as too little
_READ_AHEAD = 16  # granules of ciphertext asked of the disk ahead of the loaders


class GraphRun(Protocol):
    """One run over a compute graph, as the engine's hook presents it."""

    nodes: int
    stride: int  # nodes per slice at most: bounds how long a recall waits

    def needs(self) -> Needs:
        """Walk the graph and return what it reads of the weights."""

    def run(self, start: int, stop: int) -> None:
        """Compute nodes [start, stop)."""


class Residency:
    """Loader threads, the gate, and the plain loop that computes a graph over evicted weights."""

    def __init__(self, flexmem: FlexMem, threads: int) -> None:
        self.gate = Gate()
        self._flexmem = flexmem
        self._changed = threading.Condition()
        self._job: RestoreJob | None = None
        self._closing = False
        # What a stretch of compute holds at once at the least: several times the largest node.
        self._window = 64 * flexmem.granule
        self._threads = [
            threading.Thread(target=self._load_forever, name=f"loader-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop the loaders; granules stay as they are."""
        with self._changed:
            self._closing, self._job = True, None
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    # ---- compute ---------------------------------------------------------------------------

    def compute(self, weights: Weights, graph: GraphRun, stats: RestoreStats) -> None:
        """Run the whole graph, restoring what it reads. Mutates weights and stats.

        Raises what the restore raised (StoredDataError, GrantRefusedError) or the graph; a
        granule that failed authentication is never seen by a node.
        """
        position = 0
        while position < graph.nodes:
            epoch = weights.epoch  # read first: a recall after this line is seen at the gate
            if weights.whole:
                position = self._slice_if(weights, epoch, graph, position, graph.nodes)
                continue
            needs = graph.needs()
            if not weights.usual:
                weights.usual = usual_order(needs, weights.count)
            job = self._start(weights, needs, position, stats)
            try:
                position = self._follow(job, graph, position)
            except BaseException:
                self._stop(job)
                raise

    def restore(self, weights: Weights, stats: RestoreStats) -> None:
        """Bring all weights into memory, without computing. Mutates weights and stats; raises as compute."""
        everything = weights.usual or range(weights.count)
        needs = Needs(1, np.zeros(weights.count, np.int32), np.fromiter(everything, np.int32, weights.count))
        while not weights.whole:
            job = self._start(weights, needs, 0, stats)
            try:
                self._wait_beyond(job, 0)
            except BaseException:
                self._stop(job)
                raise

    def _follow(self, job: RestoreJob, graph: GraphRun, position: int) -> int:
        """Compute along the job; return the node reached when done or when a recall took something."""
        while position < graph.nodes and not job.stale:
            ready = self._wait_beyond(job, position)
            position = self._slice_if(job.weights, job.epoch, graph, position, ready)
        return position

    def _slice_if(self, weights: Weights, epoch: int, graph: GraphRun, start: int, ready: int) -> int:
        """Run one slice unless a recall came first; return the node reached."""
        with self.gate.slice():
            if weights.epoch != epoch:
                return start
            stop = min(ready, start + graph.stride)
            graph.run(start, stop)
            return stop

    def _wait_beyond(self, job: RestoreJob, position: int) -> int:
        """Block until a node beyond `position` can run, or the job is stale; return the first that cannot."""
        with self._changed:
            job.position = position
            ready = job.plan.ready(job.done)
            if ready <= position and job.error is None:
                began = time.perf_counter()
                # Once stopped, wait for a good stretch: after each slice ggml's threads spin for
                # milliseconds, on cores that the loaders need.
                stretch = min(job.plan.needed, job.done + job.plan.missing // _STRETCHES)
                job.waiting, job.goal = True, max(job.plan.wanted(position), stretch)
                self._changed.notify_all()
                self._changed.wait_for(lambda: job.done >= job.goal or job.error is not None or job.stale)
                job.waiting = False
                job.stats.waited += time.perf_counter() - began
                ready = job.plan.ready(job.done)
            if job.error is not None:
                raise job.error
            return ready

    # ---- jobs --------------------------------------------------------------------------------

    def _start(self, weights: Weights, needs: Needs, position: int, stats: RestoreStats) -> RestoreJob:
        with self._changed:
            plan = RestorePlan(needs, weights.states, position, weights.usual)
            job = RestoreJob(weights, plan, stats, position)
        if plan.missing:
            # One question for everything, the part that this graph can do without included.
            lacking = int(np.count_nonzero(weights.states != RESIDENT)) * self._flexmem.granule
            self._flexmem.secure_grant(lacking, min(plan.missing * self._flexmem.granule, self._window))
        with self._changed:
            job.stale = weights.epoch != job.epoch
            job.advance()
            self._job = None if job.stale else job
            self._changed.notify_all()
        return job

    def _stop(self, job: RestoreJob) -> None:
        with self._changed:
            job.stale = True
            if self._job is job:
                self._job = None

    def cancel(self) -> None:
        """Make a compute that waits for memory raise CancelledError now."""
        with self._changed:
            if self._job is not None:
                self._job.error = CancelledError("The request was cancelled.")
                self._job = None
                self._changed.notify_all()

    # ---- eviction ----------------------------------------------------------------------------

    def evict(self, weights: Weights, granules: Iterable[int]) -> int:
        """Give the memory of resident `granules` back to the OS; return the bytes. Mutates weights.

        For weights of a running request, call it with the gate shut.
        """
        with self._changed:
            taken = sorted(g for g in granules if weights.states[g] == RESIDENT)
            weights.states[taken] = LOADING  # in our hands: no loader may fill them before they are gone
            if taken:
                weights.whole = False
                weights.epoch += 1
            if self._job is not None and self._job.weights is weights:
                self._job.stale, self._job = True, None
                self._changed.notify_all()
        try:
            return sum(
                self._flexmem.release(arena, first * self._flexmem.granule, count * self._flexmem.granule)
                for arena, first, count in weights.runs(taken)
            )
        finally:
            self._put_down(weights, taken)

    def retire(self, weights: Weights) -> int:
        """Evict all of `weights`, and wait until no loader touches them any more; return the bytes.

        For the engine thread, which may then free their arenas and close their source.
        """
        with self._changed:
            if self._job is not None and self._job.weights is weights:
                self._job.stale, self._job = True, None
            self._changed.wait_for(lambda: not np.any(weights.states == LOADING))
        return self.evict(weights, range(weights.count))

    def _put_down(self, weights: Weights, granules: list[int]) -> None:
        """Mark granules that were in our hands as absent; a plan made meanwhile has passed them by."""
        with self._changed:
            weights.states[granules] = ABSENT
            if self._job is not None:
                self._job.next = self._job.done
                self._changed.notify_all()

    # ---- loaders -----------------------------------------------------------------------------

    def _load_forever(self) -> None:
        with contextlib.suppress(OSError):  # a container may forbid it; it is only a preference
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOADER_NICE)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._work() is not None)
                if self._closing:
                    return
                job = self._work()
                assert job is not None
                position = job.take()
                if position is None:
                    continue
                granule = job.plan.order[position]
            self._load(job, granule, position)

    def _work(self) -> RestoreJob | None:
        job = self._job
        return job if job is not None and job.error is None and job.next < job.end else None

    def _load(self, job: RestoreJob, granule: int, position: int) -> None:
        weights, flexmem = job.weights, self._flexmem
        part, index, length = weights.locate(granule)
        arena, offset = weights.parts[part].arena, index * flexmem.granule
        decrypt, error = 0.0, None
        committed = False
        try:
            if position % _READ_AHEAD == 0:
                self._read_ahead(job, position + _READ_AHEAD)
            committed = self._commit(job, arena, offset, position)
            if committed:
                decrypt = weights.source.restore(part, index, flexmem.view(arena, offset, length))
        except BaseException as problem:  # handed to the request that needs the granule
            error = problem
            if committed:
                flexmem.report_returned(flexmem.release(arena, offset, flexmem.granule))
                committed = False
        with self._changed:
            weights.states[granule] = RESIDENT if committed else ABSENT
            job.stats.decrypt += decrypt
            job.stats.restored += length if committed else 0
            if error is not None and position < job.plan.needed:
                job.error = job.error or error
            elif not committed and self._job is job and position >= job.plan.needed:
                job.end = job.plan.needed  # only the luxury of having all failed; who needs it will see
            elif not committed and self._job is job:
                job.next = job.done  # memory is so short that what is needed first goes first
            weights.whole = not np.any(weights.states != RESIDENT)
            newer = self._job if self._job is not job else None
            if newer is not None and not committed:
                newer.next = newer.done  # it may have passed this granule by, trusting us with it
                self._changed.notify_all()
            current = [job] if newer is None else [job, newer]
            for each in current:
                each.advance()
            # A wake-up costs more than a granule's bookkeeping: only when somebody can go on.
            if job.stale or any(j.error is not None or (j.waiting and j.done >= j.goal) for j in current):
                self._changed.notify_all()

    def _read_ahead(self, job: RestoreJob, start: int) -> None:
        for granule in job.plan.order[start : start + _READ_AHEAD]:
            part, index, _ = job.weights.locate(granule)
            job.weights.source.prefetch(part, index, 1)

    def _commit(self, job: RestoreJob, arena: Arena, offset: int, position: int) -> bool:
        """Commit one granule, streaming when grants are short. False: not needed now, and no room for it."""
        granule = self._flexmem.granule
        while not self._flexmem.try_commit(arena, offset, granule):
            if position >= job.plan.needed:
                if not self._flexmem.secure_grant(granule):
                    return False
                continue
            with self._changed:
                if not self._follows(job):
                    return False
                victim = job.plan.passed(job.position, job.weights.states)
                if victim is None and not job.waiting:
                    self._changed.wait(0.05)  # compute is busy; it will pass something
                    continue
                minimum = granule if position == job.done else 0  # compute waits for this very granule
                self._take(job, victim)
            if victim is not None:
                self._recycle(job, victim)
            elif not self._flexmem.secure_grant(granule, minimum) and not self._make_room(job, position):
                return False
        return True

    def _follows(self, job: RestoreJob) -> bool:
        return job.error is None and not job.stale and self._job is job

    def _make_room(self, job: RestoreJob, position: int) -> bool:
        """Take memory from what was loaded too early for the granule that compute needs first.

        True: look again for memory. False: this is not that granule. Raises GrantRefusedError
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
                elif first and time.monotonic() > deadline and not self._in_hand(job):
                    raise GrantRefusedError(
                        "The OS granted too little memory to run this model at all.",
                        hint="Free memory, or use a smaller model.",
                    )
                self._changed.wait(0.05)
                if not first or not job.waiting or self._in_hand(job):
                    return first  # let go of any other: the first one may need a loader
        self._recycle(job, victim)
        return True

    def _in_hand(self, job: RestoreJob) -> bool:
        """Return whether there is memory that can be had: passed, granted, or with another loader."""
        states = job.weights.states
        if self._flexmem.bytes_in(PageState.GRANTED) or job.plan.passed(job.position, states) is not None:
            return True
        held = sum(self._flexmem.committed(part.arena) for part in job.weights.parts)
        return held > int(np.count_nonzero(states == RESIDENT)) * self._flexmem.granule

    def _take(self, job: RestoreJob, victim: int | None) -> None:
        if victim is not None:
            job.weights.states[victim] = LOADING  # in our hands, as in `evict`
            job.weights.whole = False

    def _recycle(self, job: RestoreJob, victim: int) -> None:
        part, index, _ = job.weights.locate(victim)
        self._flexmem.recycle(job.weights.parts[part].arena, index * self._flexmem.granule)
        self._put_down(job.weights, [victim])
