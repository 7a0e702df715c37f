"""The queue and the one engine thread: whose turn it is, what starts, what ends.

Requests wait in one bounded queue. The engine works in turns: a turn is one model's, starts what
fits of its waiting requests and computes one graph for its running ones. `policy.schedule` says whose
turn it is, so that models in memory share the engine and others are not swapped in for nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable

import msgspec

from flexserve.errors import CallerError, CancelledError, FlexServeError, QueueFullError
from flexserve.policy.schedule import Lane, Turns
from flexserve.protocol.messages import (
    Computing,
    Embed,
    Failed,
    Finished,
    Generate,
    Standstill,
    Started,
    Timings,
    Try,
    Usage,
    Warm,
)
from flexserve.serving.eviction import Cache
from flexserve.serving.model_manager import OpenModel, Shelf
from flexserve.serving.watchdog import PATIENCE, Watchdog
from flexserve.trusted.engine.abilities import require
from flexserve.trusted.failures import failure_of
from flexserve.trusted.requests.batch import Batch, Ended
from flexserve.trusted.requests.embedding import Embedding
from flexserve.trusted.requests.generation import Generation
from flexserve.trusted.requests.trial import try_model
from flexserve.trusted.text.preparation import Preparation, Prepared


@dataclasses.dataclass(slots=True, eq=False)
class _Job:
    request: Generate | Embed | Warm | Try
    received: float  # monotonic seconds
    cancelled: bool = False
    stop: Callable[[], None] | None = None  # while it runs: what ends it early
    prepared: Prepared | None = None
    error: BaseException | None = None  # of its preparation


class Scheduler:
    """Takes requests, runs them, reports their ends through `send`.

    `submit`, `cancel`, `counts` and `drain` may be called from any thread.
    """

    def __init__(
        self,
        shelf: Shelf,
        cache: Cache,
        preparation: Preparation,
        send: Callable[[msgspec.Struct], None],
        *,
        limit: int,
        patience: float = PATIENCE,
    ) -> None:
        self._preparation = preparation
        self._shelf, self._cache, self._send, self._limit = shelf, cache, send, limit
        self._turns = Turns()
        self._changed = threading.Condition()
        self._queue: list[_Job] = []  # the oldest first
        self._running: list[_Job] = []
        self._batches: dict[str, Batch] = {}  # these two are the engine thread's own
        self._jobs: dict[Generation, _Job] = {}
        self._preparing = 0  # of those that run
        self._closing = False
        self.watchdog = Watchdog(
            lambda seconds: send(Standstill(seconds)), self._stop_all, _end_still, patience=patience
        )
        self._told = ""  # the model that the normal world believes to be computing
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Generate | Embed | Warm | Try) -> None:
        """Queue a request, or report at once that the queue is full or the server is ending."""
        with self._changed:
            if self._closing:
                error: FlexServeError | None = CancelledError("The server is shutting down.")
            elif len(self._queue) >= self._limit:
                error = QueueFullError(
                    f"{self._limit} requests are waiting.", hint="Try again in a few seconds."
                )
            else:
                error = None
                self._queue.append(_Job(request, time.monotonic()))
                self._changed.notify_all()
        if error is not None:
            self._send(Failed(request.request, failure_of(error)))

    def cancel(self, number: int) -> None:
        """Stop request `number`, queued or running. Unknown numbers are ended requests: no matter."""
        with self._changed:
            queued = [job for job in self._queue if job.request.request == number]
            self._queue = [job for job in self._queue if job not in queued]
            for job in self._running:
                if job.request.request == number:
                    _stop(job)
        self._turn_away(queued)

    def counts(self) -> tuple[int, int]:
        """Return how many requests (wait, run)."""
        with self._changed:
            return len(self._queue), len(self._running)

    def drain(self, seconds: float) -> None:
        """Take no more; let what runs end within `seconds`, then stop it. Returns when the thread ended."""
        with self._changed:
            self._closing = True
            queued, self._queue = self._queue, []
            self._changed.notify_all()
        self._turn_away(queued)
        self._thread.join(seconds)
        with self._changed:
            for job in self._running:
                _stop(job)
        self._thread.join()

    def _stop_all(self) -> None:
        """Cancel whatever computes: nothing has moved for too long."""
        with self._changed:
            for job in self._running:
                _stop(job)

    def _turn_away(self, jobs: Iterable[_Job]) -> None:
        """Report jobs that will not run. Not under the lock: sending may block."""
        for job in jobs:
            self._send(Failed(job.request.request, failure_of(CancelledError("The request was cancelled."))))

    # ---- the engine thread -----------------------------------------------------------------------

    def _work(self) -> None:
        while self._wait():
            model = self._turns.next(self._lanes(), time.monotonic())
            if model is not None:
                with self.watchdog.turn():
                    self._take_turn(model)
        self._shelf.close()

    def _wait(self) -> bool:
        """Return when there is work for a turn; meanwhile keep the house. False when closing and done."""
        while True:
            busy = any(batch.running for batch in self._batches.values())
            with self._changed:
                if busy or self._queue:
                    return True
                if self._over():
                    return False
            self._compute_with("")
            pause = self._shelf.tidy()
            if pause is None or pause > 0:
                pause = min(
                    (one for one in (pause, self._cache.rearrange()) if one is not None), default=None
                )
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._over(), pause)

    def _over(self) -> bool:
        return self._closing and not self._preparing

    def _lanes(self) -> list[Lane]:
        with self._changed:
            queue = list(self._queue)
        lanes: list[Lane] = []
        for model in dict.fromkeys([*self._batches, *(job.request.model for job in queue)]):
            waiting = [job for job in queue if job.request.model == model]
            running = self._batches[model].running if model in self._batches else []
            if not waiting and not running:
                continue
            oldest = min((job.received for job in waiting), default=None)
            priority = max([_priority(job) for job in waiting] + [g.request.priority for g in running])
            missing = self._cache.restore_seconds(self._shelf.missing(model))
            lanes.append(Lane(model, len(running), len(waiting), oldest, priority, missing))
        return lanes

    def _take_turn(self, model: str) -> None:
        while (job := self._next_job(model)) is not None:
            if not self._start(job):
                break
        batch = self._batches.get(model)
        if batch is not None:
            self._compute_with(model)
            for ended in batch.step():
                self._end(batch.entry, ended)
            if not batch.running:
                del self._batches[model]

    def _next_job(self, model: str) -> _Job | None:
        """Take the next request for `model` out of the queue: the highest priority, then the oldest."""
        batch = self._batches.get(model)
        full = batch is not None and len(batch.running) >= self._shelf.limits.sequences
        with self._changed:
            waiting = [job for job in self._queue if job.request.model == model]
            if full or not waiting:
                return None
            job = max(waiting, key=_priority)  # the first, so the oldest, of the highest
            self._queue.remove(job)
            self._running.append(job)
        return job

    def _start(self, job: _Job) -> bool:
        """Start a request; report at once what keeps it from running. False: no slot is free for it."""
        began = time.monotonic()
        try:
            if not isinstance(job.request, Try):
                self._shelf.require(job.request)
            self._compute_with(job.request.model)
            entry = self._shelf.fetch(job.request.model)
            _check(job)
            if job.error is not None:
                raise job.error
            if not isinstance(job.request, Try):
                require(entry.abilities, job.request)
            match job.request:
                case Try():
                    self._finish(job, self._try(entry, job, job.request))
                case Warm():
                    self._finish(job, self._warm(entry, job, job.request, began))
                case Embed():
                    self._finish(job, self._embed(entry, job, job.request))
                case Generate() if job.prepared is None or job.prepared.entry is not entry:
                    self._prepare(entry, job, job.request)
                case Generate():
                    return self._begin(job.prepared, job, job.request, began)
        except BaseException as error:  # whatever it is, the client hears of it and we go on
            self._fail(job, error)
        return True

    def _prepare(self, entry: OpenModel, job: _Job, request: Generate) -> None:
        """Have a request prepared in another thread; it is queued again then."""
        held = contextlib.ExitStack()
        held.enter_context(self._shelf.holding(entry))

        def done(prepared: Prepared | BaseException) -> None:
            held.close()
            if isinstance(prepared, Prepared):
                job.prepared = prepared
            else:
                job.error = prepared
            with self._changed:
                self._running.remove(job)
                self._preparing -= 1
                later = (at for at, other in enumerate(self._queue) if other.received > job.received)
                self._queue.insert(next(later, len(self._queue)), job)
                self._changed.notify_all()

        with self._changed:
            self._preparing += 1
        self._preparation.start(entry, request, done)

    def _begin(self, prepared: Prepared, job: _Job, request: Generate, began: float) -> bool:
        entry = prepared.entry
        batch = self._batches.get(request.model) or Batch(entry, lambda: self._shelf.mend(entry))
        generation = Generation(prepared, request, job.received, self._send)
        try:
            known = generation.tokens[:-1] if request.reuse else []
            claimed = self._shelf.claim(entry, request.owner, known)
        except BaseException:
            generation.close()
            raise
        if claimed is None:
            generation.close()
            with self._changed:
                self._running.remove(job)
                self._queue.insert(0, job)
            return False
        slot, cached = claimed
        with self._changed:
            job.stop = lambda: batch.stop(generation)
            if job.cancelled:
                job.stop()
        batch.running.append(generation)
        self._jobs[generation] = job
        self._batches[request.model] = batch
        generation.begin(slot, cached, began)
        self._cache.invoked(request.model, len(generation.tokens) - cached, request.next_model)
        return True

    def _try(self, entry: OpenModel, job: _Job, request: Try) -> Finished:
        with self._changed:
            job.stop = entry.context.cancel
        self._send(Started(request.request, 0))
        try_model(self._shelf, entry)
        return Finished(request.request, "stop", Usage(0, 0), Timings())

    def _compute_with(self, model: str) -> None:
        """Tell the normal world whose turn it is: should we die of it, it is set aside."""
        if model != self._told:
            self._told = model
            self._send(Computing(model))

    def _warm(self, entry: OpenModel, job: _Job, request: Warm, began: float) -> Finished:
        with self._changed:
            job.stop = entry.context.cancel
        with self._shelf.using(entry, request.keep_alive):
            stats = self._shelf.mended(entry, entry.context.restore)
        timings = stats.timings(queue=began - job.received)
        return Finished(request.request, "stop", Usage(0, 0), timings)

    def _embed(self, entry: OpenModel, job: _Job, request: Embed) -> Finished:
        with self._shelf.using(entry, request.keep_alive):
            embedding = Embedding(entry, request, job.received, self._send, self._shelf.mended)
            finished = embedding.run(lambda: _check(job))
        self._cache.invoked(request.model, finished.usage.prompt_tokens, request.next_model)
        return finished

    def _end(self, entry: OpenModel, ended: Ended) -> None:
        """Take the slot back, then tell the client: who hears of the end may recall the memory at once."""
        generation = ended.generation
        generation.close()
        assert generation.slot is not None
        request = generation.request
        self._shelf.release(entry, generation.slot, request.keep_alive, keep_kv=request.reuse)
        job = self._jobs.pop(generation)
        if ended.error is None:
            finished = generation.finished(ended.reason)
            self._cache.measured(entry.name, finished)
            self._shelf.note(entry.name, None)
            self._finish(job, finished)
        else:
            if isinstance(ended.error, FlexServeError) and not isinstance(ended.error, CallerError):
                self._shelf.note(entry.name, ended.error)
            self._fail(job, ended.error)

    def _finish(self, job: _Job, message: Finished) -> None:
        self._forget(job)
        self._send(message)

    def _fail(self, job: _Job, error: BaseException) -> None:
        self._forget(job)
        self._send(Failed(job.request.request, failure_of(error)))

    def _forget(self, job: _Job) -> None:
        with self._changed:
            self._running.remove(job)


def _end_still(seconds: float) -> None:
    """End the process: its engine stands still, and nobody can take a thread out of it."""
    sys.stderr.write(f"the engine stood still for {seconds:.0f} s\n")
    sys.stderr.flush()
    os._exit(1)


def _check(job: _Job) -> None:
    if job.cancelled:
        raise CancelledError("The request was cancelled.")


def _stop(job: _Job) -> None:
    job.cancelled = True
    if job.stop is not None:
        job.stop()


def _priority(job: _Job) -> int:
    return job.request.priority if isinstance(job.request, Generate) else 0
