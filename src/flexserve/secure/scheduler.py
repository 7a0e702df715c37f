"""The queue and the one engine thread that works it off. First come, first served; bounded."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable

import msgspec

from flexserve.errors import CancelledError, FlexServeError, QueueFullError
from flexserve.secure.embed import Embedding
from flexserve.secure.failures import failure_of
from flexserve.secure.generate import Generation, Warming
from flexserve.secure.shelf import OpenModel, Shelf
from flexserve.world.messages import Embed, Failed, Generate, Warm


@dataclasses.dataclass(slots=True)
class _Job:
    request: Generate | Embed | Warm
    received: float  # monotonic seconds
    cancelled: bool = False
    entry: OpenModel | None = None  # while it runs


class Scheduler:
    """Takes requests, runs them one by one, reports their ends through `send`.

    `submit`, `cancel` and `drain` may be called from any thread.
    """

    def __init__(
        self, shelf: Shelf, send: Callable[[msgspec.Struct], None], *, limit: int, idle: float
    ) -> None:
        self._shelf, self._send = shelf, send
        self._limit, self._idle = limit, idle
        self._changed = threading.Condition()
        self._queue: deque[_Job] = deque()
        self._running: _Job | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Generate | Embed | Warm) -> None:
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
            for job in queued:
                self._queue.remove(job)
            if self._running is not None and self._running.request.request == number:
                self._stop(self._running)
        self._turn_away(queued)

    def counts(self) -> tuple[int, int]:
        """Return how many requests (wait, run)."""
        with self._changed:
            return len(self._queue), int(self._running is not None)

    def drain(self, seconds: float) -> None:
        """Take no more; let what runs end within `seconds`, then stop it. Returns when the thread ended."""
        with self._changed:
            self._closing = True
            queued = list(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        self._turn_away(queued)
        self._thread.join(seconds)
        with self._changed:
            if self._running is not None:
                self._stop(self._running)
        self._thread.join()

    def _turn_away(self, jobs: list[_Job]) -> None:
        """Report jobs that will not run. Not under the lock: sending may block."""
        for job in jobs:
            self._send(Failed(job.request.request, failure_of(CancelledError("The request was cancelled."))))

    def _stop(self, job: _Job) -> None:
        job.cancelled = True
        if job.entry is not None:
            job.entry.context.cancel()

    # ---- the engine thread -----------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._run(job)
            except BaseException as error:  # whatever it is, the client hears of it and we go on
                self._send(Failed(job.request.request, failure_of(error)))
            finally:
                with self._changed:
                    self._running = None
                    self._changed.notify_all()
        self._shelf.close()

    def _next(self) -> _Job | None:
        """Wait for work; meanwhile give idle models' scratch back. None when closing."""
        while True:
            wait = self._shelf.release_idle(self._idle)
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing, wait)
                if self._queue:
                    self._running = self._queue.popleft()
                    return self._running
                if self._closing:
                    return None

    def _run(self, job: _Job) -> None:
        self._check(job)
        with self._shelf.lease(job.request.model) as entry:
            with self._changed:
                job.entry = entry
                self._check(job)
            try:
                match job.request:
                    case Warm():
                        finished = Warming(entry, job.request, job.received).run()
                    case Embed():
                        finished = Embedding(entry, job.request, job.received, self._send).run(
                            lambda: self._check(job)
                        )
                    case Generate():
                        finished = Generation(entry, job.request, job.received, self._send).run()
            finally:
                with self._changed:
                    job.entry = None
        self._send(finished)  # not in the lease: who hears of the end may recall the memory at once

    def _check(self, job: _Job) -> None:
        if job.cancelled:
            raise CancelledError("The request was cancelled.")
