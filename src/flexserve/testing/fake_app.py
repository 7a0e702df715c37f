"""A trusted application without an engine: models are sizes, requests are counts, nothing takes time.

It keeps its promises as the port states them (flexserve.protocol.trusted_app): what is in use is not
evicted, what is not granted is refused and leaves all as it was. `calls` tells what it was asked to do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from flexserve.errors import CancelledError, FlexServeError, GrantRefusedError, UnknownModelError
from flexserve.protocol.answers import Finished, Timings, Usage
from flexserve.protocol.statuses import KvStatus
from flexserve.protocol.trusted_app import (
    IdleKv,
    Kind,
    Missing,
    ModelMemory,
    Pool,
    Progress,
    Stored,
    Ticket,
    Work,
)

CHUNK = 1 << 20


@dataclasses.dataclass(slots=True)
class FakeModel:
    """A model of the store, and what it has in memory when it is open. Sizes in bytes."""

    size: int
    kv: int = CHUNK  # of one sequence
    scratch: int = CHUNK
    heap: int = 0
    sequences: int = 4
    opens_at_once: bool = True
    error: FlexServeError | None = None  # that opening it raises
    # while it is open:
    is_open: bool = False
    weights: int = 0
    has_scratch: int = 0
    idle_kv: int = 0
    untouched_kv: int = 0  # of those, bytes without pages
    users: set[int] = dataclasses.field(default_factory=set)
    tokens: int = 100  # of its conversation
    sealed: bool = True
    last_used: float = 0.0


@dataclasses.dataclass(slots=True)
class FakeRequest:
    """What a request will take: `prompt` tokens, and `answer` of them that are generated."""

    ticket: Ticket
    prompt: int = 4
    answer: int = 2
    plaintext: int = 0
    ability: FlexServeError | None = None  # that `require` raises
    preparing: FlexServeError | None = None  # what preparing it ends with
    broken: FlexServeError | None = None  # what its next step ends with, once
    prepared: bool = False
    stopped: bool = False
    pending: int = 0
    timings: Timings = dataclasses.field(default_factory=Timings)
    right: int = 0  # of the guesses before a step
    guessed: int = 0


class FakeApp:
    """A TrustedApp over an OS that grants up to `memory` bytes."""

    def __init__(self, memory: int = 1 << 40, **models: FakeModel) -> None:
        self.chunk, self.batch = CHUNK, 8
        self.limit = memory
        self.models = models
        self.requests: dict[int, FakeRequest] = {}
        self.calls: list[tuple[object, ...]] = []
        self.conversations: list[tuple[str, int | None]] = []  # whose KV was asked for
        self.granted = 0
        self.minimum = 0  # bytes of the last grant that a request cannot get on without
        self.ready = 0  # bytes that were evicted and kept; of those granted, what the OS counts as resident
        self.loading = False
        self.moved = 0.0
        self.inside: Callable[[], None] = lambda: None  # called while a step computes
        self.reported = 0
        self.reason = ""  # why something went back last  # bytes
        self.kv = KvStatus()
        self._serial = 0

    def ask(self, model: str, work: Work = Work.GENERATE, **how: object) -> FakeRequest:
        """Have a request admitted; `how`: fields of its Ticket, or of FakeRequest."""
        self._serial += 1
        of_ticket = {field.name for field in dataclasses.fields(Ticket)} & how.keys()
        values = {name: how.pop(name) for name in of_ticket}
        ticket = Ticket(self._serial, model, work, **({"received": float(self._serial)} | values))  # type: ignore[arg-type]
        request = FakeRequest(ticket, **how)  # type: ignore[arg-type]
        self.requests[self._serial] = request
        return request

    @property
    def used(self) -> int:
        """Bytes of secure memory in use."""
        return sum(self._holds(name) for name in self.models)

    def _holds(self, name: str) -> int:
        model = self.models[name]
        return model.weights + model.has_scratch + model.idle_kv + model.kv * len(model.users)

    def _model(self, name: str) -> FakeModel:
        if name not in self.models:
            raise UnknownModelError(f"No model {name}.")
        return self.models[name]

    # ---- models ----------------------------------------------------------------------------------

    def stored(self) -> Sequence[Stored]:
        """Return all models."""
        return [Stored(name, model.size) for name, model in self.models.items()]

    def is_open(self, model: str) -> bool:
        """Return whether it is open."""
        return self._model(model).is_open

    def opens_at_once(self, model: str) -> bool:
        """Return what the model says."""
        return self._model(model).opens_at_once

    def open(self, model: str) -> None:
        """Open it, or raise its error."""
        it = self._model(model)
        if it.error is not None:
            raise it.error
        it.is_open = True
        self.calls.append(("open", model))

    def close(self, model: str, seal_until: float) -> None:
        """Close it."""
        it = self._model(model)
        assert not it.users, "it is in use"
        del seal_until
        it.is_open, it.weights, it.has_scratch, it.idle_kv = False, 0, 0, 0
        self.calls.append(("close", model))

    # ---- requests --------------------------------------------------------------------------------

    def require(self, request: int) -> None:
        """Raise the request's error."""
        error = self.requests[request].ability
        if error is not None:
            raise error

    def is_prepared(self, request: int) -> bool:
        """Return whether it was prepared."""
        return self.requests[request].prepared

    def prepare(self, request: int, done: Callable[[FlexServeError | None], None]) -> None:
        """Prepare it at once."""
        it = self.requests[request]
        it.prepared = it.preparing is None
        done(it.preparing)

    def plaintext(self, request: int) -> int:
        """Return what the request says."""
        return self.requests[request].plaintext

    def begin(self, request: int) -> Progress | None:
        """Take scratch and a sequence."""
        it = self.requests[request]
        model = self.models[it.ticket.model]
        if len(model.users) >= model.sequences:
            return None
        reused = min(model.idle_kv, model.kv)
        self._commit(model.kv - reused + model.scratch - model.has_scratch)
        model.idle_kv -= reused
        model.has_scratch = model.scratch
        model.users.add(request)
        it.pending = it.prompt
        self.calls.append(("begin", request))
        return Progress(request, it.pending)

    def guess(self, request: int, draft: str, count: int) -> int:
        """Guess as many as are wanted, of which the model's `right` are."""
        self.calls.append(("guess", request, draft, count))
        error, it = self.models[draft].error, self.requests[request]
        if error is not None:
            raise error
        it.guessed = min(count, it.answer - 1)
        return it.guessed

    def step(self, model: str, requests: Sequence[int], limit: int) -> Sequence[Progress]:
        """Bring weights in, take tokens in, generate one each."""
        self.calls.append(("step", model, tuple(requests), limit))
        it = self.models[model]
        taken = min(self.granted, it.size - it.weights)
        self.granted -= taken
        it.weights += taken
        self.inside()
        return [self._stepped(self.requests[request], limit) for request in requests]

    def _stepped(self, it: FakeRequest, limit: int) -> Progress:
        number = it.ticket.request
        if it.stopped:
            return Progress(number, error=CancelledError("It was stopped."))
        if it.broken is not None:
            broken, it.broken = it.broken, None
            return Progress(number, error=broken)
        it.pending -= min(it.pending, limit)
        if it.pending:
            return Progress(number, it.pending)
        right, it.guessed = min(it.right, it.guessed), 0
        it.answer -= 1 + right
        if it.answer <= 0:
            return Progress(number, finished=_finished(it))
        it.pending = 1
        return Progress(number, 1, right)

    def resume(self, request: int) -> int:
        """Have it go on."""
        self.calls.append(("resume", request))
        return self.requests[request].pending

    def run(self, request: int) -> Finished:
        """Do it at once."""
        it = self.requests[request]
        if it.stopped:
            raise CancelledError("It was stopped.")
        if it.broken is not None:
            broken, it.broken = it.broken, None
            raise broken
        self.calls.append(("run", request))
        with self._in_use(it):
            model = self.models[it.ticket.model]
            taken = min(self.granted, model.size - model.weights)
            self.granted -= taken
            model.weights += taken
            self.inside()
        return _finished(it)

    @contextmanager
    def _in_use(self, it: FakeRequest) -> Iterator[None]:
        users = self.models[it.ticket.model].users
        users.add(it.ticket.request)
        try:
            yield
        finally:
            users.discard(it.ticket.request)

    def stop(self, request: int) -> None:
        """Have it end at its next step."""
        if request in self.requests:
            self.requests[request].stopped = True

    def end(self, request: int) -> None:
        """Forget it; its KV stays."""
        it = self.requests.pop(request, None)
        self.calls.append(("end", request))
        if it is not None and request in self.models[it.ticket.model].users:
            model = self.models[it.ticket.model]
            model.users.discard(request)
            model.idle_kv += model.kv
            model.sealed = False

    # ---- memory ----------------------------------------------------------------------------------

    def _commit(self, size: int) -> None:
        if self.grant(size, size) < size:
            raise GrantRefusedError("No memory.", missing=size - self.granted)
        self.granted -= size

    def pool(self) -> Pool:
        """Return the books."""
        self.ready = min(self.ready, self.granted)  # what lies ready is the first that is used
        return Pool(self.granted, self.used, 0, self.used + self.ready)

    def chunks(self, model: str) -> Sequence[tuple[int, int]]:
        """Return the chunks of an open model: those in memory are the first."""
        it = self._model(model)
        resident = it.weights // CHUNK
        pairs = ((2, resident), (0, it.size // CHUNK - resident))
        return [pair for pair in pairs if pair[1]] if it.is_open else []

    def memory(self) -> Sequence[ModelMemory]:
        """Return what open models hold."""
        return [
            ModelMemory(
                *(name, it.size, it.weights, it.weights == it.size),
                scratch=it.has_scratch,
                idle_kv=it.idle_kv,
                used_kv=it.kv * len(it.users),
                heap=it.heap,
                running=bool(it.users),
            )
            for name, it in self.models.items()
            if it.is_open
        ]

    def missing(self, model: str) -> Missing:
        """Return what is not there."""
        it = self.models[model]
        lacking = it.size - it.weights if it.is_open else 0
        return Missing(lacking, lacking, min(lacking, CHUNK))

    def grant(self, size: int, minimum: int) -> int:
        """Grant up to the limit."""
        self.minimum = minimum
        self.granted += max(0, min(size - self.granted, self.limit - self.used - self.granted))
        return self.granted

    def grant_missing(self, model: str) -> int:
        """Grant it up to the limit."""
        missing = self.missing(model)
        return self.grant(missing.size, missing.minimum)

    def evict(
        self,
        model: str,
        kind: Kind,
        size: int,
        *,
        keep: bool,
        until: float = 0.0,
        sequence: int | None = None,
    ) -> int:
        """Give up what is not in use."""
        it = self.models[model]
        freed = 0
        if kind is Kind.SCRATCH and not it.users:
            freed, it.has_scratch = it.has_scratch, 0
        elif kind is Kind.KV:
            self.conversations.append((model, sequence))
            freed = min(it.idle_kv, -(-size // it.kv) * it.kv)
            it.idle_kv -= freed
        elif kind is Kind.WEIGHTS and (not it.users or until):
            freed = min(it.weights, -(-size // CHUNK) * CHUNK)
            it.weights -= freed
        self.calls.append(("evict", model, kind, freed, "kept" if keep else "gone"))
        if keep:
            self.granted += freed
            self.ready += freed
        return freed

    def unused(self) -> int:
        """Return what is granted."""
        return self.granted

    def return_unused(self) -> int:
        """Give it back."""
        size, self.granted, self.ready = self.granted, 0, 0
        return size

    def report_returned(self, size: int, reason: str = "") -> None:
        """Record it."""
        self.reported += size
        self.reason = reason

    def load(self, model: str, size: int | None) -> None:
        """Bring it in at once, as far as it is granted."""
        it = self.models[model]
        wanted = max(0, (it.size if size is None else size) - it.weights)
        taken = min(wanted, self.grant(wanted, 0))
        self.granted -= taken
        it.weights += taken
        self.calls.append(("load", model, taken))

    def stop_loading(self) -> None:
        """End it."""
        self.loading = False

    # ---- KV --------------------------------------------------------------------------------------

    def idle_kv(self) -> Sequence[IdleKv]:
        """Return one conversation for each open model that has idle KV."""
        return [
            IdleKv(
                *(name, 0, it.idle_kv, it.idle_kv - it.untouched_kv, it.tokens, it.last_used, it.sealed),
                worth_sealing=not it.sealed,
            )
            for name, it in self.models.items()
            if it.is_open and it.idle_kv
        ]

    def kv_status(self) -> KvStatus:
        """Return what the test says."""
        return self.kv

    def sealing_size(self, model: str, sequence: int) -> int:
        """Return the size of a sequence."""
        return {0: self.models[model].kv}[sequence]

    def seal(self, model: str, sequence: int) -> None:
        """Seal it."""
        self.models[model].sealed = True
        self.calls.append(("seal", model, sequence))

    def seal_before(self, deadline: float) -> None:
        """Seal all."""
        self.calls.append(("seal before", deadline))
        for model in self.models.values():
            model.sealed = True

    def last_moved(self) -> float:
        """Return what the test says."""
        return self.moved


def _finished(it: FakeRequest) -> Finished:
    return Finished(it.ticket.request, "stop", Usage(it.prompt, 1), it.timings)
