"""Residency: which granules of a model's weights are in memory, and bringing them back in time.

The plain loop is `compute`: make a plan from the graph, let loader threads follow it, and run
each stretch of nodes as soon as what it reads is there. Loader threads commit a granule, read
its ciphertext straight into it and decrypt in place; the interpreter lock is held only for the
decryption, so page allocation in the kernel, which dominates, runs in parallel.

When the normal world grants less than the graph needs, the loaders stream: each granule that
compute has passed makes room for one ahead, and the generation goes on, slower.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flexserve.core.pages import PageState
from flexserve.core.restore import ABSENT, LOADING, RESIDENT, Needs, RestorePlan, usual_order
from flexserve.errors import CancelledError, GrantRefusedError
from flexserve.platforms.ports import Arena
from flexserve.secure.flexmem import FlexMem
from flexserve.secure.gate import Gate

# Loaders yield the cores to compute: a compute thread preempted inside one of ggml's spinning
# barriers makes all others spin. They still get every cycle that compute leaves.
_LOADER_NICE = 10
_STRETCHES = 12  # compute that had to stop goes on after this part of what is missing
_PATIENCE = 0.5  # seconds for memory that is in other hands to turn up, before it counts as too little
_READ_AHEAD = 16  # granules of ciphertext asked of the disk ahead of the loaders


class WeightSource(Protocol):
    """Where evicted weights come back from (secure.models.image.Image)."""

    def restore(self, buffer: int, index: int, target: memoryview) -> float:
        """Fill `target` with chunk `index` of `buffer`, authenticated; return seconds of decryption."""

    def prefetch(self, buffer: int, index: int, count: int) -> None:
        """Ask the disk for chunks ahead of need."""


class GraphRun(Protocol):
    """One run over a compute graph, as the engine's hook presents it."""

    nodes: int
    stride: int  # nodes per slice at most: bounds how long a recall waits

    def needs(self) -> Needs:
        """Walk the graph and return what it reads of the weights."""

    def run(self, start: int, stop: int) -> None:
        """Compute nodes [start, stop)."""


@dataclasses.dataclass(slots=True)
class RestoreStats:
    """What restoring cost a request. Seconds and bytes."""

    waited: float = 0.0  # wall time compute stood still for memory
    decrypt: float = 0.0  # loader-thread time in AES
    restored: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """One weight buffer: its arena and its size in bytes."""

    arena: Arena
    size: int


class Weights:
    """The weights of one model as numbered granules, over all of its buffers.

    `states`, `whole` and `epoch` change only under the residency's lock.
    """

    def __init__(self, name: str, parts: Sequence[Part], source: WeightSource, granule: int) -> None:
        self.name = name
        self.parts = tuple(parts)
        self.source = source
        self._granule = granule
        counts = [part.arena.size // granule for part in self.parts]
        self._bases = [sum(counts[:i]) for i in range(len(counts))]
        self.count = sum(counts)
        self.states: NDArray[np.uint8] = np.zeros(self.count, dtype=np.uint8)
        self.whole = False
        self.epoch = 0  # grows when something is taken away between slices
        self.usual: list[int] = []  # load order, once a graph was seen

    @property
    def size(self) -> int:
        """Bytes of all weight buffers."""
        return sum(part.size for part in self.parts)

    @property
    def resident(self) -> int:
        """Bytes of weights in memory."""
        return min(self.size, int(np.count_nonzero(self.states == RESIDENT)) * self._granule)

    def eviction_order(self) -> list[int]:
        """Return the resident granules, first the one whose loss costs least (the end of the layers)."""
        order = self.usual or range(self.count)
        return [g for g in reversed(order) if self.states[g] == RESIDENT]

    def locate(self, granule: int) -> tuple[int, int, int]:
        """Return (buffer, chunk index in it, bytes of the chunk) of a granule."""
        part = bisect.bisect_right(self._bases, granule) - 1
        index = granule - self._bases[part]
        return part, index, min(self._granule, self.parts[part].size - index * self._granule)

    def base(self, part: int) -> int:
        """Return the number of the first granule of buffer `part`."""
        return self._bases[part]


class _Job:
    """One plan being followed by the loaders. Fields change only under the residency's lock."""

    def __init__(self, weights: Weights, plan: RestorePlan, stats: RestoreStats, start: int) -> None:
        self.weights, self.plan, self.stats = weights, plan, stats
        self.epoch = weights.epoch  # of the states that the plan was made from
        self.position = start  # node that compute has reached
        self.next = 0  # index in plan.order of the next granule to load …
        self.end = len(plan.order)  # … and where to stop
        self.done = 0  # plan.order[:done] is resident
        self.waiting = False  # compute stands still until plan.order[:goal] is resident
        self.goal = 0
        self.error: BaseException | None = None
        self.stale = False  # a recall took something: make a new plan

    def advance(self) -> None:
        states, order = self.weights.states, self.plan.order
        while self.done < len(order) and states[order[self.done]] == RESIDENT:
            self.done += 1

    def take(self) -> int | None:
        """Take the next absent granule in hand; return its place in the order (None: there is none)."""
        states, order = self.weights.states, self.plan.order
        while self.next < self.end:
            position, self.next = self.next, self.next + 1
            if states[order[position]] == ABSENT:
                states[order[position]] = LOADING
                return position
        self.advance()
        return None

    def early(self) -> int | None:
        """Return the resident granule that was loaded longest before its turn, if compute can do without."""
        states, order = self.weights.states, self.plan.order
        later = range(len(order) - 1, max(self.done, self.goal - 1), -1)
        return next((order[i] for i in later if states[order[i]] == RESIDENT), None)


class Residency:
    """Loader threads, the gate, and the plain loop that computes a graph over evicted weights."""

    def __init__(self, flexmem: FlexMem, threads: int) -> None:
        self.gate = Gate()
        self._flexmem = flexmem
        self._changed = threading.Condition()
        self._job: _Job | None = None
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

    def _follow(self, job: _Job, graph: GraphRun, position: int) -> int:
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

    def _wait_beyond(self, job: _Job, position: int) -> int:
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

    def _start(self, weights: Weights, needs: Needs, position: int, stats: RestoreStats) -> _Job:
        with self._changed:
            plan = RestorePlan(needs, weights.states, position, weights.usual)
            job = _Job(weights, plan, stats, position)
        missing = plan.missing * self._flexmem.granule
        if missing:
            self._flexmem.secure_grant(missing, min(missing, self._window))
        with self._changed:
            job.stale = weights.epoch != job.epoch
            job.advance()
            self._job = None if job.stale else job
            self._changed.notify_all()
        return job

    def _stop(self, job: _Job) -> None:
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
                for arena, first, count in self._runs(weights, taken)
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

    def _runs(self, weights: Weights, granules: list[int]) -> list[tuple[Arena, int, int]]:
        """Group sorted granules into (arena, first index, count) of consecutive ones in one arena."""
        runs: list[tuple[Arena, int, int]] = []
        for granule in granules:
            part, index, _ = weights.locate(granule)
            arena = weights.parts[part].arena
            if runs and runs[-1][0] is arena and runs[-1][1] + runs[-1][2] == index:
                runs[-1] = (arena, runs[-1][1], runs[-1][2] + 1)
            else:
                runs.append((arena, index, 1))
        return runs

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

    def _work(self) -> _Job | None:
        job = self._job
        return job if job is not None and job.error is None and job.next < job.end else None

    def _load(self, job: _Job, granule: int, position: int) -> None:
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
            if error is not None:
                job.error = job.error or error
            elif not committed and self._job is job and position >= job.plan.needed:
                job.end = job.plan.needed  # only the luxury of having all was refused
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

    def _read_ahead(self, job: _Job, start: int) -> None:
        for granule in job.plan.order[start : start + _READ_AHEAD]:
            part, index, _ = job.weights.locate(granule)
            job.weights.source.prefetch(part, index, 1)

    def _commit(self, job: _Job, arena: Arena, offset: int, position: int) -> bool:
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

    def _follows(self, job: _Job) -> bool:
        return job.error is None and not job.stale and self._job is job

    def _make_room(self, job: _Job, position: int) -> bool:
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

    def _in_hand(self, job: _Job) -> bool:
        """Return whether there is memory that can be had: passed, granted, or with another loader."""
        states = job.weights.states
        if self._flexmem.bytes_in(PageState.GRANTED) or job.plan.passed(job.position, states) is not None:
            return True
        held = sum(self._flexmem.committed(part.arena) for part in job.weights.parts)
        return held > int(np.count_nonzero(states == RESIDENT)) * self._flexmem.granule

    def _take(self, job: _Job, victim: int | None) -> None:
        if victim is not None:
            job.weights.states[victim] = LOADING  # in our hands, as in `evict`
            job.weights.whole = False

    def _recycle(self, job: _Job, victim: int) -> None:
        part, index, _ = job.weights.locate(victim)
        self._flexmem.recycle(job.weights.parts[part].arena, index * self._flexmem.granule)
        self._put_down(job.weights, [victim])
