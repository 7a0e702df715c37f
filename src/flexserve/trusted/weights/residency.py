"""Residency: which chunks of a model's weights are in memory, and bringing them back in time.

The plain loop is `compute`: make a plan from the graph, let loader threads follow it, and run
each stretch of nodes as soon as what it reads is there. Loader threads commit a chunk, read
its ciphertext straight into it and decrypt in place; the interpreter lock is held only for the
decryption, so page allocation in the kernel, which dominates, runs in parallel. Where compute has
every core, they stand still while it runs, and only the disk goes on.

When the normal world grants less than the graph needs, the loaders stream (trusted.weights.streaming).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

from flexserve.errors import CancelledError
from flexserve.platforms.ports import Arena
from flexserve.protocol.trusted_app import Missing
from flexserve.trusted.memory.flexmem import FlexMem
from flexserve.trusted.weights.chunks import Weights
from flexserve.trusted.weights.cpu_arbiter import CpuArbiter, yield_to_compute
from flexserve.trusted.weights.fill import Cost, Filler
from flexserve.trusted.weights.gate import Gate
from flexserve.trusted.weights.job import RestoreJob, RestoreStats
from flexserve.trusted.weights.plan import Needs, RestorePlan, stretch, usual_order
from flexserve.trusted.weights.prefetch import Prefetcher
from flexserve.trusted.weights.states import RESIDENT, ChunkEvent, ChunkState
from flexserve.trusted.weights.streaming import StreamingAllocator

READ_AHEAD = 64  # chunks of ciphertext asked of the disk ahead of the loaders


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

    def __init__(self, flexmem: FlexMem, threads: int, filler: Filler | None = None) -> None:
        self.gate = Gate()
        self._flexmem = flexmem
        self._changed = threading.Condition()
        self._job: RestoreJob | None = None
        self._starting = 0  # jobs that ask for their memory
        self._arbiter = CpuArbiter(self._changed, threads, lambda: self._job)
        self._closing = False
        self._filler = filler or Filler(flexmem)
        self._streaming = StreamingAllocator(
            *(flexmem, self._changed),
            in_turns=self._arbiter.spare == 0,
            follows=self._follows,
            aborted=self._abort,
        )
        self._prefetcher = Prefetcher(
            *(flexmem, self._filler, self._changed, threads), idle=self._idle, settle=self._settle
        )
        # What a stretch of compute holds at once at the least: several times the largest node.
        self._window = 64 * flexmem.chunk
        self._threads = [
            threading.Thread(target=self._load_forever, name=f"loader-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop the loaders; chunks stay as they are."""
        with self._changed:
            self._closing, self._job = True, None
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._prefetcher.close()
        self._filler.close()

    # ---- compute ---------------------------------------------------------------------------

    def compute(self, weights: Weights, graph: GraphRun, stats: RestoreStats) -> None:
        """Run the whole graph, restoring what it reads. Mutates weights and stats.

        Raises what the restore raised (StoredDataError, GrantRefusedError) or the graph; a
        chunk that failed authentication is never seen by a node.
        """
        position, needs = 0, None
        if not weights.usual:  # learned while all is there, too: it says what a recall takes first
            needs = self._needs(weights, graph)
            weights.usual = usual_order(needs, weights.count)
        while position < graph.nodes:
            epoch = weights.table.epoch  # read first: a recall after this line is seen at the gate
            if weights.whole:
                position = self._slice_if(weights, epoch, graph, position, graph.nodes)
                continue
            needs = needs or self._needs(weights, graph)
            job = self._start(weights, needs, position, stats)
            try:
                position = self._follow(job, graph, position)
            except BaseException:
                self._stop(job)
                raise

    @staticmethod
    def _needs(weights: Weights, graph: GraphRun) -> Needs:
        """Walk the graph; remember how much of the weights it reads."""
        needs = graph.needs()
        weights.read = max(weights.read, len(np.unique(needs.chunk)))
        return needs

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
            if weights.table.epoch != epoch:
                return start
            stop = min(ready, start + graph.stride)
            with self._arbiter.computing():
                graph.run(start, stop)
            return stop

    def resting(self) -> AbstractContextManager[None]:
        """Leave the cores to the loaders while a slice that runs waits for another engine."""
        return self._arbiter.resting()

    def _wait_beyond(self, job: RestoreJob, position: int) -> int:
        """Block until a node beyond `position` can run, or the job is stale; return the first that cannot."""
        with self._changed:
            job.position = position
            ready = job.plan.ready(job.done)
            if ready <= position and job.error is None:
                began = time.perf_counter()
                # Once stopped, wait for a good stretch: after each slice ggml's threads spin for
                # milliseconds, on cores that the loaders need.
                more = stretch(job.plan.missing, spare=self._arbiter.spare, idle=self._arbiter.idle)
                job.waiting = True
                job.goal = max(job.plan.wanted(position), min(job.plan.needed, job.done + more))
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
            self._ask_for(job)
        with self._changed:
            job.stale = weights.table.epoch != job.epoch
            job.advance()
            self._job = None if job.stale else job
            self._changed.notify_all()
        return job

    def _ask_for(self, job: RestoreJob) -> None:
        """Ask for all the memory at once, the part that this graph can do without included."""
        chunk = self._flexmem.chunk
        lacking = (job.weights.count - job.weights.table.count(ChunkState.RESIDENT)) * chunk
        missing = job.plan.missing * chunk
        began = time.perf_counter()
        with self.expecting():
            self._flexmem.grant(lacking, min(missing, self._window))
            with self._changed:
                job.stats.allocate += time.perf_counter() - began

    @contextlib.contextmanager
    def expecting(self) -> Iterator[None]:
        """Keep what is granted inside the block for the foreground: a prefetch takes none of it."""
        with self._changed:
            self._starting += 1
        try:
            yield
        finally:
            with self._changed:
                self._starting -= 1
                self._changed.notify_all()

    def missing(self, weights: Weights) -> Missing:
        """Return the memory that bringing in all of `weights` takes, and what its graphs read of that."""
        if weights.whole:
            return Missing(0, 0, 0)
        absent = weights.count - weights.table.count(ChunkState.RESIDENT)
        needed = max(0, absent - (weights.count - (weights.read or weights.count)))
        size = needed * self._flexmem.chunk
        return Missing(absent * self._flexmem.chunk, size, min(size, self._window))

    def _stop(self, job: RestoreJob) -> None:
        with self._changed:
            job.stale = True
            if self._job is job:
                self._job = None
            self._changed.notify_all()

    def _follows(self, job: RestoreJob) -> bool:
        """Return whether the loaders still follow `job`. Under the lock."""
        return job.error is None and not job.stale and self._job is job

    def cancel(self) -> None:
        """Make a compute that waits for memory raise CancelledError now."""
        with self._changed:
            if self._job is not None:
                self._job.error = CancelledError("The request was cancelled.")
                self._job = None
                self._changed.notify_all()

    # ---- prefetch ----------------------------------------------------------------------------

    def prefetch(self, weights: Weights, chunks: Sequence[int]) -> None:
        """Bring `chunks` in, in this order, while no request has anything to load.

        Returns at once. Replaces an older prefetch (with no chunks: ends it). `evict` and `retire`
        of these weights end it, too, and so, silently, does a refused grant or damaged data.
        """
        self._prefetcher.start(weights, chunks)

    def end_prefetch(self) -> None:
        """End a prefetch, of whatever weights; what it brought in stays."""
        self._prefetcher.revoke(None)

    @property
    def prefetching(self) -> bool:
        """Whether a prefetch is under way."""
        return self._prefetcher.active

    def _idle(self) -> bool:
        """Return whether no foreground job has anything to load. Under the lock."""
        job = self._job
        return not self._starting and (job is None or job.error is not None or job.done >= job.end)

    # ---- eviction ----------------------------------------------------------------------------

    def evict(self, weights: Weights, chunks: Iterable[int], *, keep_grants: bool = False) -> int:
        """Give the memory of resident `chunks` back to the OS; return the bytes. Mutates weights.

        With `keep_grants` it stays granted, for others of us to use; nothing goes on prefetching
        then, which would take it. For weights of a running request, call it with the gate shut.
        """
        self._prefetcher.revoke(None if keep_grants else weights)
        with self._changed:
            taken = sorted(g for g in chunks if weights.states[g] == RESIDENT)
            weights.table.apply(ChunkEvent.EVICT, taken)
            if self._job is not None and self._job.weights is weights:
                self._job.stale, self._job = True, None
                self._changed.notify_all()
        chunk = self._flexmem.chunk
        give_up = self._flexmem.recycle if keep_grants else self._release
        try:
            return sum(
                give_up(arena, first * chunk, count * chunk) for arena, first, count in weights.runs(taken)
            )
        finally:
            self._abort(weights, taken)

    def _release(self, arena: Arena, offset: int, length: int) -> int:
        return self._flexmem.release(arena, offset, length)

    def retire(self, weights: Weights) -> int:
        """Evict all of `weights`, and wait until no loader touches them any more; return the bytes.

        For the engine thread, which may then free their arenas and close their source.
        """
        self._prefetcher.revoke(weights)
        with self._changed:
            if self._job is not None and self._job.weights is weights:
                self._job.stale, self._job = True, None
            self._changed.wait_for(lambda: not weights.table.claimed)
        return self.evict(weights, range(weights.count))

    def _abort(self, weights: Weights, chunks: list[int]) -> None:
        """Record that evicted chunks are absent; a plan made meanwhile has passed them by."""
        with self._changed:
            weights.table.apply(ChunkEvent.GONE, chunks)
            if self._job is not None:
                self._job.next = self._job.done
            self._changed.notify_all()

    # ---- loaders -----------------------------------------------------------------------------

    def _load_forever(self) -> None:
        yield_to_compute()
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
                chunk = job.plan.order[position]
                self._arbiter.begin_loading()
            began, busy = time.perf_counter(), time.thread_time()
            try:
                self._load(job, chunk, position)
            finally:
                idle = 1 - (time.thread_time() - busy) / (time.perf_counter() - began)
                with self._changed:
                    self._arbiter.end_loading(idle)

    def _work(self) -> RestoreJob | None:
        """Return the job, if a loader may claim a chunk of it now. Under the lock."""
        job = self._job
        return job if job is not None and job.loadable and self._arbiter.free else None

    def _load(self, job: RestoreJob, chunk: int, position: int) -> None:
        cost: Cost | None = None
        error: BaseException | None = None
        try:
            if position % READ_AHEAD == 0:
                self._read_ahead(job, position + READ_AHEAD)
            cost = self._filler.fill(
                job.weights, chunk, lambda arena, offset: self._commit(job, position, arena, offset)
            )
        except BaseException as problem:  # handed to the request that needs the chunk
            error = problem
        with self._changed:
            if cost is not None:
                job.stats.add(cost)
            if error is not None and position < job.plan.needed:
                job.error = job.error or error
            elif cost is None and self._job is job and position >= job.plan.needed:
                job.end = job.plan.needed  # only the luxury of having all failed; who needs it will see
            elif cost is None and self._job is job:
                job.next = job.done  # memory is so short that what is needed first goes first
            # What a recall found claimed goes with the rest, unless a request waits for it.
            unwanted = cost is not None and job.stale and position >= job.plan.needed
            if not unwanted:
                self._settle(job.weights, chunk, resident=cost is not None, by=job)
        if unwanted:
            part, index, _ = job.weights.locate(chunk)
            size = self._flexmem.chunk
            self._flexmem.report_returned(self._release(job.weights.parts[part].arena, index * size, size))
            with self._changed:
                self._settle(job.weights, chunk, resident=False)
                self._changed.notify_all()  # `retire` waits until nothing is claimed

    def _commit(self, job: RestoreJob, position: int, arena: Arena, offset: int) -> bool:
        return self._streaming.commit(job, position, arena, offset)

    def _settle(self, weights: Weights, chunk: int, *, resident: bool, by: RestoreJob | None = None) -> None:
        """Note what became of a claimed chunk (of job `by`; None: of a prefetch). Under the lock."""
        weights.table.move(ChunkEvent.LOADED if resident else ChunkEvent.ABORT, chunk)
        job = self._job
        overlooked = job is not by and not resident
        if job is not None and overlooked:
            job.next = job.done  # it may have passed this chunk by, trusting us with it
        for each in (by, job):
            if each is not None:
                each.advance()
        # A wake-up costs more than a chunk's bookkeeping: only when somebody can go on.
        waited_for = job is not None and job.waiting and job.done >= job.goal
        ended = by is not None and (by.stale or by.error is not None or by.done >= by.end)
        if overlooked or waited_for or ended:
            self._changed.notify_all()

    def _read_ahead(self, job: RestoreJob, start: int) -> None:
        for chunk in job.plan.order[start : start + READ_AHEAD]:
            part, index, _ = job.weights.locate(chunk)
            job.weights.source.prefetch(part, index, 1)
