"""The loader: threads that bring chunks of weights in, and the lock of all that says where chunks are.

It serves two queues. The *job* is what the graph that computes reads, in the order in which it reads it.
A *prefetch* is what is expected to be read next; its threads (trusted.weights.prefetch) go on only while the
job has nothing to load. Loader threads commit some chunks, read their ciphertext straight into them and
decrypt in place, all of it without the interpreter lock.

Job, prefetch, CpuArbiter and StreamingAllocator decide, under the loader's lock. What is claimed is
brought in without it (trusted.weights.claim): no lock is held while the OS is asked for memory, or a chunk
is filled or released.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

from flexserve.errors import CancelledError
from flexserve.trusted.memory.flexmem import FlexMem
from flexserve.trusted.weights.chunks import Weights
from flexserve.trusted.weights.claim import Claim, ClaimLoader
from flexserve.trusted.weights.cpu_arbiter import LOADER_NICE, CpuArbiter, lower_priority
from flexserve.trusted.weights.fill import Filler
from flexserve.trusted.weights.job import RestoreJob, RestoreStats
from flexserve.trusted.weights.plan import Needs, RestorePlan, stretch
from flexserve.trusted.weights.prefetch import Prefetch, Prefetcher
from flexserve.trusted.weights.states import RESIDENT, ChunkEvent, ChunkState

WINDOW = 64  # chunks that a stretch of compute holds at once at the least: several times the largest node
_TOGETHER = 32  # chunks that a loader claims at the most
_CLAIMED = 0.02  # seconds: longer than it takes to fill what a loader claims


class Loader:
    """Owns the lock of jobs, prefetches and tables of chunks, and the threads that follow them."""

    def __init__(self, flexmem: FlexMem, filler: Filler, threads: int) -> None:
        self._flexmem, self._filler = flexmem, filler
        self._changed = threading.Condition()
        self._job: RestoreJob | None = None
        self._starting = 0  # jobs whose memory is being asked for
        self._prefetcher = Prefetcher(self, self._changed, flexmem, filler)
        self._arbiter = CpuArbiter(threads)
        self._claims = ClaimLoader(*(self, self._changed, flexmem, filler), in_turns=self._arbiter.spare == 0)
        self._closing = False
        self._threads = [
            threading.Thread(target=serve, name=f"{name}-{i}", daemon=True)
            for name, serve in (("loader", self._serve_jobs), ("prefetch", self._prefetcher.serve))
            for i in range(threads)
        ]
        self._loaders = threads
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop the threads; chunks stay as they are."""
        with self._changed:
            self._closing, self._job = True, None
            self._prefetcher.close()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._filler.close()

    # ---- the foreground queue ------------------------------------------------------------------

    def start(self, weights: Weights, needs: Needs, position: int, stats: RestoreStats) -> RestoreJob:
        """Have `needs` loaded, from node `position` on, in place of the job before.

        The job is stale from the start if something was evicted meanwhile. Raises GrantRefusedError.
        """
        with self._changed:
            plan = RestorePlan(needs, weights.states, position, weights.usual)
            job = RestoreJob(weights, plan, stats, position)
            lacking = weights.count - weights.table.count(ChunkState.RESIDENT)
        if plan.missing:
            self._ask_for(job, lacking)
        with self._changed:
            job.stale = weights.table.epoch != job.epoch
            job.advance()
            self._job = None if job.stale else job
            self._changed.notify_all()
        return job

    def _ask_for(self, job: RestoreJob, lacking: int) -> None:
        """Ask for all the memory at once, the part that this graph can do without included."""
        began = time.perf_counter()
        with self.expecting():
            self._filler.ask(
                lacking * self._flexmem.chunk, min(job.plan.missing, WINDOW) * self._flexmem.chunk
            )
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

    def wait_beyond(self, job: RestoreJob, position: int) -> int:
        """Block until a node beyond `position` can run, or the job is stale; return the first that cannot.

        Raises what loading raised (StoredDataError, GrantRefusedError), and CancelledError.
        """
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

    def stop(self, job: RestoreJob) -> None:
        """Load no more of a job."""
        with self._changed:
            job.stale = True
            if self._job is job:
                self._job = None
            self._changed.notify_all()

    def cancel(self) -> None:
        """Make who waits for the job raise CancelledError now."""
        with self._changed:
            if self._job is not None:
                self._job.error = CancelledError("The request was cancelled.")
                self._job = None
                self._changed.notify_all()

    # ---- the cores -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Keep the cores for a slice of compute."""
        try:
            self._take_cores()
            yield
        finally:
            with self._changed:
                self._arbiter.end_compute()
                if self._job is not None and self._job.loadable:
                    self._changed.notify_all()

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Leave the cores to the loaders while a slice that runs waits for another engine."""
        with self._changed:
            self._arbiter.end_compute()
            self._changed.notify_all()
        try:
            yield
        finally:
            self._take_cores()

    def _take_cores(self) -> None:
        """Wait for claimed chunks where compute needs their cores; no loader takes another meanwhile.

        Not where loaders wait for compute, which has to pass weights first whose memory they can use; and
        not for long, since they may wait for the normal world, which may be waiting for this slice to end.
        """
        with self._changed:
            self._arbiter.begin_compute()
            if self._arbiter.crowded:
                self._changed.wait_for(
                    lambda: not self._arbiter.crowded or self._job is None or self._job.short, _CLAIMED
                )

    # ---- what claims and prefetches look at --------------------------------------------------------

    @property
    def job(self) -> RestoreJob | None:
        """The job that loaders follow. Under the lock."""
        return self._job

    @property
    def idle(self) -> bool:
        """Whether the foreground has nothing to load. Under the lock."""
        return not self._starting and (self._job is None or self._job.idle)

    # ---- the prefetch queue --------------------------------------------------------------------

    def prefetch(self, weights: Weights, chunks: Sequence[int]) -> None:
        """Load `chunks`, in this order, while the job has nothing to load. Replaces an older prefetch."""
        with self._changed:
            self._prefetcher.replace(Prefetch(weights, chunks))
            self._changed.notify_all()

    def end_prefetch(self) -> None:
        """End a prefetch, of whatever weights; what it brought in stays, what is claimed is given back."""
        with self._changed:
            self._prefetcher.revoke(None)

    @property
    def prefetching(self) -> bool:
        """Whether chunks are still to be prefetched, or claimed for it."""
        with self._changed:
            return self._prefetcher.active

    # ---- eviction ------------------------------------------------------------------------------

    def evict(self, weights: Weights, chunks: Iterable[int], *, keep_grants: bool = False) -> int:
        """Take the memory of those of `chunks` that are resident; return the bytes. Mutates weights.

        Ends a job of these weights and a prefetch of them; with `keep_grants` any prefetch, which would
        take the grants.
        """
        with self._changed:
            self._prefetcher.revoke(None if keep_grants else weights)
            taken = sorted(chunk for chunk in chunks if weights.states[chunk] == RESIDENT)
            weights.table.apply(ChunkEvent.EVICT, taken)
            self._end_job_of(weights)
        return self.give_up(weights, taken, keep_grants=keep_grants)

    def retire(self, weights: Weights) -> int:
        """Evict all of `weights`, once nobody fills or takes chunks of them any more; return the bytes."""
        with self._changed:
            self._prefetcher.revoke(weights)
            self._end_job_of(weights)
            self._changed.wait_for(lambda: not weights.table.claimed)
        return self.evict(weights, range(weights.count))

    def _end_job_of(self, weights: Weights) -> None:
        if self._job is not None and self._job.weights is weights:
            self._job.stale, self._job = True, None
            self._changed.notify_all()

    def give_up(self, weights: Weights, chunks: list[int], *, keep_grants: bool) -> int:
        """Take the memory of chunks that are EVICTING; return the bytes. Mutates weights."""
        size = self._flexmem.chunk
        try:
            return sum(
                self._filler.release(arena, first * size, len(run) * size, keep_grants=keep_grants)
                for arena, first, run in weights.runs(chunks)
            )
        finally:
            with self._changed:
                weights.table.apply(ChunkEvent.GONE, chunks)
                if self._job is not None:
                    self._job.next = self._job.done  # its plan may have passed them by
                self._changed.notify_all()

    # ---- loader threads ------------------------------------------------------------------------

    def _serve_jobs(self) -> None:
        lower_priority(LOADER_NICE)
        while (claim := self._claim()) is not None:
            began, busy = time.perf_counter(), time.thread_time()
            try:
                self._claims.load(claim)
            finally:
                busy, took = time.thread_time() - busy, time.perf_counter() - began
                with self._changed:
                    if self._arbiter.end_loading(len(claim.positions), busy=busy, took=took):
                        self._changed.notify_all()

    def _claim(self) -> Claim | None:
        """Wait for chunks to claim, and claim them. None: the loader closes."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._closing or self._may_claim())
                job = self._job
                if self._closing or job is None:
                    return None
                if positions := job.take(self._at_once(job)):
                    self._arbiter.begin_loading()
                    return Claim(job, positions)

    def _at_once(self, job: RestoreJob) -> int:
        """Return how many chunks a loader may claim. Under the lock.

        Where memory lies ready for them, each takes a fraction of a millisecond; one for which the OS has to
        supply memory takes as long as many. They are to end together.
        """
        share = -(-job.ahead // (2 * self._loaders))
        return 1 if job.short else max(1, min(_TOGETHER, share, self._flexmem.ready() // self._flexmem.chunk))

    def _may_claim(self) -> bool:
        return self._job is not None and self._job.loadable and self._arbiter.free

    def settle(
        self, weights: Weights, chunks: Iterable[int], *, resident: bool, by: RestoreJob | None = None
    ) -> None:
        """Record what became of claimed chunks (of job `by`; None: of a prefetch). Under the lock."""
        for chunk in chunks:
            weights.table.move(ChunkEvent.LOADED if resident else ChunkEvent.ABORT, chunk)
        job = self._job
        overlooked = job is not by and not resident
        if job is not None and overlooked:
            job.next = job.done  # it may have passed this chunk by, trusting us with it
        for each in (by, job):
            if each is not None:
                each.advance()
        # A wake-up costs more than a chunk's bookkeeping: only when somebody can go on. Of a job that nobody
        # follows any more, each chunk may be the last one that `retire` waits for.
        waited_for = job is not None and job.waiting and job.done >= job.goal
        ended = by is not None and (by is not job or by.error is not None or by.done >= by.end)
        if overlooked or waited_for or ended:
            self._changed.notify_all()

    def put_back(self, weights: Weights, chunk: int) -> None:
        """Give the memory of a chunk that was filled, and that nobody wants any more, to the OS."""
        part, index, _ = weights.locate(chunk)
        size = self._flexmem.chunk
        self._flexmem.report_returned(self._filler.release(weights.parts[part].arena, index * size, size))
