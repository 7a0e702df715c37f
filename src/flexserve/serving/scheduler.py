"""The queue and the one engine thread: whose turn it is, what starts, what ends.

Requests wait in one bounded queue. The engine works in turns: a turn is one model's, starts what
fits of its waiting requests and computes one graph for its running ones. `policy.schedule` says whose
turn it is, so that models in memory share the engine and others are not swapped in for nothing.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from flexserve.errors import CallerError, CancelledError, FlexServeError, GrantRefusedError, QueueFullError
from flexserve.policy.batching import Batching, Part
from flexserve.policy.schedule import Lane, Turns
from flexserve.protocol.answers import Failed, Finished
from flexserve.protocol.failures import failure_of, foreseen
from flexserve.protocol.messages import Computing, Standstill
from flexserve.protocol.statuses import ComputeStatus
from flexserve.protocol.trusted_app import Progress, Ticket, TrustedApp, Work
from flexserve.serving.guesses import Guesses
from flexserve.serving.memory_manager import MemoryManager
from flexserve.serving.model_manager import ModelManager
from flexserve.serving.request import Request, Requests
from flexserve.serving.watchdog import Watchdog

_PREPARED = (Work.GENERATE, Work.CONVERT)
_WITHOUT_WEIGHTS = (Work.TRY, Work.CONVERT)  # one brings them in by itself, one needs none


class Scheduler:
    """Takes requests, has them run by `app`, reports their ends through `send`.

    `submit`, `cancel`, `counts`, `computed`, `memory_changed` and `drain` may be called from any thread.
    `limit`: requests that may wait; `sequences`: generations that a model computes at once; `patience`:
    seconds that the engine may stand still.
    """

    def __init__(
        self,
        app: TrustedApp,
        models: ModelManager,
        memory: MemoryManager,
        send: Callable[[msgspec.Struct], None],
        *,
        limit: int,
        sequences: int,
        patience: float,
    ) -> None:
        self._app, self._models, self._memory, self._send = app, models, memory, send
        self._limit, self._sequences = limit, sequences
        self._turns = Turns()
        self._changed = threading.Condition()  # guards the requests, and the next three
        self._requests = Requests()
        self._preparing = 0  # of those that run
        self._closing = False
        self._look_again = False  # memory changed hands since the last housekeeping
        self._batches: dict[str, dict[int, Request]] = {}  # generations that began; the engine thread's own …
        self._batching: dict[str, Batching] = {}
        self._guesses = Guesses(app, memory.prefetch, models.record)
        self._graphs = self._parts = 0  # computed, and requests in them
        self._told = ""  # … as is the model that the normal world believes to be computing
        self._watchdog = Watchdog(
            app.last_moved,
            lambda seconds: send(Standstill(seconds)),
            self._stop_running,
            _end_still,
            patience=patience,
        )
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, ticket: Ticket) -> None:
        """Queue a request, or report at once that the queue is full or the server is ending."""
        with self._changed:
            if self._closing:
                error: FlexServeError | None = CancelledError("The server is shutting down.")
            elif len(self._requests.waiting()) >= self._limit:
                error = QueueFullError(
                    f"{self._limit} requests are waiting.", hint="Try again in a few seconds."
                )
            else:
                error = None
                self._requests.add(Request(ticket))
                self._changed.notify_all()
        if error is not None:
            self._app.end(ticket.request)
            self._send(Failed(ticket.request, failure_of(error)))

    def cancel(self, number: int) -> None:
        """Stop request `number`, queued or running. Unknown numbers are ended requests: no matter."""
        with self._changed:
            queued = self._requests.drop_waiting(number)
            running = [request for request in self._requests.running() if request.number == number]
        self._stop(running)
        self._turn_away(queued)

    def counts(self) -> tuple[int, int]:
        """Return how many requests (wait, run)."""
        with self._changed:
            return len(self._requests.waiting()), len(self._requests.running())

    def computed(self) -> ComputeStatus:
        """Return what was computed since the start."""
        return ComputeStatus(self._graphs, self._parts, self._guesses.checks)

    def memory_changed(self) -> None:
        """Have the housekeeping look again, in the next quiet moment: the OS took memory."""
        with self._changed:
            self._look_again = True
            self._changed.notify_all()

    def use_drafts(self, drafts: Mapping[str, str]) -> None:
        """Have these models guess the next tokens of others, by the names of the latter. Any thread."""
        self._guesses.use(drafts)

    def drain(self, seconds: float) -> None:
        """Take no more; let what runs end within `seconds`, then stop it. Returns when the thread ended."""
        with self._changed:
            self._closing = True
            queued = self._requests.drop_waiting()
            self._changed.notify_all()
        self._turn_away(queued)
        self._thread.join(seconds)
        self._stop_running()
        self._thread.join()

    def _stop_running(self) -> None:
        """Stop whatever runs."""
        with self._changed:
            running = self._requests.running()
        self._stop(running)

    def _stop(self, requests: Iterable[Request]) -> None:
        for request in requests:
            request.cancelled = True
            self._app.stop(request.number)

    def _turn_away(self, requests: Iterable[Request]) -> None:
        """Report requests that will not run. Not under the lock: sending may block."""
        for request in requests:
            self._app.end(request.number)
            self._send(Failed(request.number, failure_of(_cancelled())))

    # ---- the engine thread -----------------------------------------------------------------------

    def _work(self) -> None:
        while self._wait():
            model = self._turns.next(self._lanes(), time.monotonic())
            if model is not None:
                self._memory.turn(model)
                with self._watchdog.turn():
                    self._take_turn(model)
        self._models.close()

    def _wait(self) -> bool:
        """Return when there is work for a turn; do the housekeeping meanwhile. False: closing, and done.

        There is none while a request is prepared: it would be kept waiting.
        """
        while True:
            with self._changed:
                if self._batches or self._requests.waiting():
                    return True
                if self._over():
                    return False
                quiet = not self._preparing  # else there is housekeeping once nothing is prepared any more
                self._look_again = False
            self._compute_with("")
            pause = self._memory.tidy() if quiet else None
            with self._changed:
                self._changed.wait_for(functools.partial(self._is_due, quiet=quiet), pause)

    def _is_due(self, *, quiet: bool) -> bool:
        """Return whether there is something to do. `quiet`: nothing was being prepared. Under the lock."""
        again = self._look_again if quiet else not self._preparing
        return bool(self._requests.waiting()) or self._over() or again

    def _over(self) -> bool:
        return self._closing and not self._preparing

    def _lanes(self) -> list[Lane]:
        with self._changed:
            waiting = self._requests.waiting()
        lanes: list[Lane] = []
        for model in dict.fromkeys([*self._batches, *(request.model for request in waiting)]):
            queue = [request.ticket for request in waiting if request.model == model]
            running = [request.ticket for request in self._batches.get(model, {}).values()]
            oldest = min((ticket.received for ticket in queue), default=None)
            priority = max(ticket.priority for ticket in [*queue, *running])
            missing = self._memory.restore_seconds(model)
            lanes.append(Lane(model, len(running), len(queue), oldest, priority, missing))
        return lanes

    def _take_turn(self, model: str) -> None:
        while len(self._batches.get(model, ())) < self._sequences:
            with self._changed:
                request = self._requests.take(model)
            if request is None or not self._start(request):
                break
        if model in self._batches:
            self._compute_with(model)
            self._step(model)

    # ---- starting --------------------------------------------------------------------------------

    def _start(self, request: Request) -> bool:
        """Start a request; report at once what keeps it from running. False: no sequence is free for it."""
        number, model = request.number, request.model
        try:
            self._app.require(number)
            self._compute_with(model)
            self._memory.with_memory(model, lambda: self._models.fetch(model))
            if request.cancelled:
                raise _cancelled()
            if request.error is not None:
                raise request.error
            self._app.require(number)
            work = request.ticket.work
            if work in _PREPARED and not self._app.is_prepared(number):
                self._prepare(request)
            elif work is Work.GENERATE:
                return self._begin(request)
            else:
                self._finish(request, self._run(request))
        except BaseException as error:  # whatever it is, the client hears of it and we go on
            self._fail(request, foreseen(error))
        return True

    def _prepare(self, request: Request) -> None:
        """Have a request prepared in another thread; it is queued again then."""

        def done(error: FlexServeError | None) -> None:
            request.error = error
            with self._changed:
                self._preparing -= 1
                self._requests.put_back(request)
                self._changed.notify_all()

        with self._changed:
            self._preparing += 1
        try:
            self._app.prepare(request.number, done)
        except BaseException:
            with self._changed:
                self._preparing -= 1
            raise

    def _begin(self, request: Request) -> bool:
        number, model = request.number, request.model
        if plaintext := self._app.plaintext(number):
            self._memory.provide(model, plaintext)
        begun = self._memory.with_memory(model, lambda: self._app.begin(number))
        if begun is None:
            with self._changed:
                self._requests.put_back(request)
            return False
        request.pending, request.sequence, request.apart = begun.pending, begun.sequence, begun.apart
        self._batches.setdefault(model, {})[number] = request
        self._memory.invoked(model, begun.pending, request.ticket.next_model)
        self._guesses.begun(model)
        return True

    def _run(self, request: Request) -> Finished:
        ticket = request.ticket

        def run() -> Finished:
            if ticket.work not in _WITHOUT_WEIGHTS:
                self._memory.provide_weights(ticket.model, whole=ticket.work is Work.WARM)
            return self._app.run(ticket.request)

        finished = self._memory.with_memory(ticket.model, run)
        if ticket.work is Work.EMBED:
            self._count(1)
            self._memory.invoked(ticket.model, finished.usage.prompt_tokens, ticket.next_model)
        return finished

    def _compute_with(self, model: str) -> None:
        """Tell the normal world whose turn it is: should we die of it, it is set aside."""
        if model != self._told:
            self._told = model
            self._send(Computing(model))

    # ---- computing -------------------------------------------------------------------------------

    def _step(self, model: str) -> None:
        """Compute one graph for the generations of `model`; end those that it ends."""
        batch = self._batches[model]
        for request in [request for request in batch.values() if request.cancelled]:
            self._leave(request)
            self._fail(request, _cancelled())
        batching = self._batching.setdefault(model, Batching(self._app.batch))
        parts = {number: Part(it.pending, it.sequence, it.apart) for number, it in batch.items()}
        chosen, limit = batching.next(parts)
        if chosen:

            def step() -> Sequence[Progress]:
                self._memory.provide_weights(model)
                return self._app.step(model, chosen, limit)

            self._count(len(chosen))
            for progress in self._guesses.stepped(model, [batch[number] for number in chosen], step):
                self._advance(batch[progress.request], progress)
        if not batch:
            del self._batches[model], self._batching[model]

    def _count(self, requests: int) -> None:
        """Count a graph for so many requests. The engine thread alone does."""
        self._graphs += 1
        self._parts += requests

    def _advance(self, request: Request, progress: Progress) -> None:
        """Record where a generation is; end it when it is over."""
        if progress.finished is not None:
            self._leave(request)
            self._memory.measured(request.model, progress.finished)
            self._models.record(request.model, None)
            self._finish(request, progress.finished)
        elif progress.error is None:
            request.pending = progress.pending
        elif not self._went_on(request, progress.error):
            self._leave(request)
            self._fail(request, progress.error)

    def _went_on(self, request: Request, error: FlexServeError) -> bool:
        """Have a generation go on for which idle models can give the memory that it was refused."""
        if not isinstance(error, GrantRefusedError) or not self._memory.make_way(
            request.model, error.missing
        ):
            return False
        try:
            request.pending = self._memory.with_memory(
                request.model, lambda: self._app.resume(request.number)
            )
        except FlexServeError:
            return False
        return True

    def _leave(self, request: Request) -> None:
        del self._batches[request.model][request.number]

    # ---- ending: the memory is free before the client hears of it, who may recall it at once --------

    def _finish(self, request: Request, message: Finished) -> None:
        self._let_go(request)
        self._send(message)

    def _fail(self, request: Request, error: FlexServeError) -> None:
        if not isinstance(error, CallerError):
            self._models.record(request.model, error)
        self._let_go(request)
        self._send(Failed(request.number, failure_of(error)))

    def _let_go(self, request: Request) -> None:
        self._app.end(request.number)
        ticket = request.ticket
        looked = ticket.work is Work.CONVERT and ticket.keep_alive is None
        self._models.used(ticket.model, ticket.keep_alive, looked=looked)
        with self._changed:
            self._requests.remove(request)


def _cancelled() -> CancelledError:
    return CancelledError("The request was cancelled.")


def _end_still(seconds: float) -> None:
    """End the process: its engine stands still, and nobody can take a thread out of it."""
    sys.stderr.write(f"the engine stood still for {seconds:.0f} s\n")
    sys.stderr.flush()
    os._exit(1)
