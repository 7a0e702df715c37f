"""The trusted application: llama.cpp behind the port that policy sees (protocol.trusted_app).

It holds the requests' contents and the models that are open, and does what it is told, as far as that
hurts nobody: what is in use is not evicted, and what is not there is refused.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from flexserve.errors import CancelledError, FlexServeError
from flexserve.protocol.answers import Converted, Finished, Started, Timings, Usage
from flexserve.protocol.failures import foreseen
from flexserve.protocol.requests import Convert, Embed, Generate, Warm
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
)
from flexserve.trusted.engine.context import BATCH
from flexserve.trusted.memory.ownership import PageState
from flexserve.trusted.open_model import OpenModel, Services
from flexserve.trusted.open_models import OpenModels, latest
from flexserve.trusted.requests import decoding
from flexserve.trusted.requests.conversion import convert, give
from flexserve.trusted.requests.embedding import Embedding
from flexserve.trusted.requests.generation import Generation
from flexserve.trusted.requests.guesser import Guesser, require_same_words
from flexserve.trusted.requests.registry import Registry
from flexserve.trusted.requests.request import Request
from flexserve.trusted.requests.tasks import Message, require
from flexserve.trusted.requests.trial import try_model
from flexserve.trusted.sessions.clock import steady_clock
from flexserve.trusted.store.licences import require_time, require_use
from flexserve.trusted.text.preparation import Preparation, Prepared

_MOMENT = 0.05  # seconds
_PATIENCE = 1 / 4  # part of a recall's time that it waits for a sealing under way, at most

Send = Callable[[msgspec.Struct], None]


class LlamaApp:
    """A TrustedApp; see there for what its methods do. `send`: where answers go."""

    def __init__(self, services: Services, send: Send) -> None:
        self._services, self._send = services, send
        self._flexmem, self._residency = services.engine.flexmem, services.residency
        self._preparation = Preparation(services.renderer)
        self._clock = steady_clock()  # of licences
        self._open = OpenModels(services)
        self._requests = Registry[Request]()
        self._computing: frozenset[int] = frozenset()  # requests of the graph that computes
        self._sealing = threading.Lock()  # held while idle KV is sealed in a quiet moment
        self._reserved: contextlib.ExitStack | None = None  # from a grant to what it is for
        self.chunk = self._flexmem.chunk
        self.batch = BATCH

    # ---- models ----------------------------------------------------------------------------------

    def stored(self) -> Sequence[Stored]:
        return self._open.stored()

    def is_open(self, model: str) -> bool:
        return self._open.is_current(model)

    def opens_at_once(self, model: str) -> bool:
        return self._open.opens_at_once(model)

    def open(self, model: str) -> None:
        self._open.open(model)

    def close(self, model: str, seal_until: float) -> None:
        self._open.close(model, seal_until)

    def digests(self, model: str) -> tuple[str, str]:
        """Return the SHA-256, as hex, of the GGUFs of an open model and of the one that it adapts ("": none).

        Any thread.
        """
        return self._open.digests(model)

    # ---- requests --------------------------------------------------------------------------------

    def admit(self, message: Message, send: Send | None = None) -> Ticket:
        """Take a request in; return what policy may know of it. Any thread.

        `send`: where its answer goes, up to its end, if not where all do. Raises PeerError for a number that
        another request has.
        """
        request = Request(message, time.monotonic(), send or self._send)
        self._requests.admit(message.request, request)
        return request.ticket

    def require(self, request: int) -> None:
        message = self._requests[request].message
        self._require_licence(message.model, _use(message))
        abilities = self._open.abilities(message.model)
        if abilities is not None and isinstance(message, Generate | Embed | Warm):
            require(abilities, message)

    def _require_licence(self, model: str, use: str | None) -> None:
        if terms := self._services.store.terms(model):
            require_time(terms, self._clock() // 1000)
            if use is not None:
                require_use(terms, use)

    def is_prepared(self, request: int) -> bool:
        it = self._requests[request]
        if isinstance(it.message, Convert):
            return it.converted is not None
        return it.prepared is not None and it.prepared.entry is self._open.get(it.message.model)

    def prepare(self, request: int, done: Callable[[FlexServeError | None], None]) -> None:
        it = self._requests[request]
        message, entry = it.message, self._open[it.message.model]
        held = contextlib.ExitStack()
        held.enter_context(entry.holding())

        def work() -> Prepared | Converted:
            if isinstance(message, Convert):
                return convert(message, entry.template, entry.vocabulary)
            assert isinstance(message, Generate)
            return self._preparation.prepare(entry, message)

        def ended(result: Prepared | Converted | BaseException) -> None:
            held.close()
            if isinstance(result, BaseException):
                done(foreseen(result))
                return
            if isinstance(result, Converted):
                it.converted = result
            else:
                it.prepared = result
            done(None)

        self._preparation.start(work, ended)

    def plaintext(self, request: int) -> int:
        it = self._requests[request]
        prepared, message = it.prepared, it.message
        assert prepared is not None, "it is not prepared"
        assert isinstance(message, Generate)
        return prepared.entry.conversations.plaintext(message.owner, _known(message, prepared.prompt.tokens))

    def begin(self, request: int) -> Progress | None:
        it, began = self._requests[request], time.monotonic()
        prepared, message = it.prepared, it.message
        assert prepared is not None, "it is not prepared"
        assert isinstance(message, Generate)
        entry = prepared.entry
        with entry.using():
            known = _known(message, prepared.prompt.tokens)
            claimed = entry.conversations.claim(message.owner, prepared.prompt.tokens, known)
        if claimed is None:
            return None
        slot, cached = claimed
        it.uses.callback(entry.conversations.release, slot, keep=message.reuse)
        generation = Generation(prepared, message, it.received, it.send)
        it.uses.callback(generation.close)
        it.generation = generation
        it.interrupt = lambda: self._interrupt(entry, request)
        generation.begin(slot, cached, began)
        return generation.progress()

    def _interrupt(self, entry: OpenModel, request: int) -> None:
        """Break the graph that computes off, if it is for `request` alone."""
        if self._computing == {request}:
            entry.context.cancel()

    def guess(self, request: int, draft: str, count: int) -> int:
        it, generation, entry = self._requests[request], self._generation(request), self._open[draft]
        room = generation.room(count)
        if not room or not entry.context.goes_back:
            return 0
        if it.guesser is None or it.guesser.entry is not entry:
            self._require_licence(draft, "text")
            require_same_words(generation.entry, entry)
            it.guesser = Guesser(entry, generation.request.owner)
            it.uses.callback(it.guesser.close)
        with self._engaged([request]):
            guesses = it.guesser.guess(generation.tokens, room)
        generation.take_guesses(guesses)
        return len(guesses)

    def step(self, model: str, requests: Sequence[int], limit: int) -> Sequence[Progress]:
        generations = [self._generation(request) for request in requests]
        with self._engaged(requests):
            return decoding.step(self._open[model], generations, limit)

    def resume(self, request: int) -> int:
        generation = self._generation(request)
        generation.go_on()
        return generation.pending

    def run(self, request: int) -> Finished:
        it, began = self._requests[request], time.monotonic()
        message, entry = it.message, self._open[it.message.model]
        it.interrupt = entry.context.cancel
        with self._engaged([request]):
            if it.stopped:
                raise CancelledError("The request was cancelled.")
            if isinstance(message, Embed):
                it.interrupt = None  # between two texts
                it.embedding = it.embedding or Embedding(
                    *(entry, message, it.received, it.send), stopped=lambda: it.stopped
                )
                with entry.using():
                    return it.embedding.run()
            if it.converted is not None:
                return give(it.converted, it.send)
            it.send(Started(request, 0))
            if isinstance(message, Warm):
                with entry.using():
                    stats = entry.mended(entry.context.restore)
                timings = stats.timings(queue=began - it.received)
                return Finished(request, "stop", Usage(0, 0), timings)
            try_model(entry, lambda abilities: self._open.keep_abilities(entry, abilities))
            return Finished(request, "stop", Usage(0, 0), Timings())

    def _generation(self, request: int) -> Generation:
        generation = self._requests[request].generation
        assert generation is not None, "it has not begun"
        return generation

    @contextlib.contextmanager
    def _engaged(self, requests: Sequence[int]) -> Iterator[None]:
        """Compute for `requests` inside the block; what is left of their grants is others' after it."""
        self._computing = frozenset(requests)
        try:
            yield
        finally:
            self._computing = frozenset()
            self._unreserve()

    def stop(self, request: int) -> None:
        it = self._requests.get(request)
        if it is not None:
            it.stop()

    def end(self, request: int) -> None:
        it = self._requests.end(request)
        self._unreserve()
        if it is not None:
            it.uses.close()
            entry = self._open.get(it.message.model)
            if entry is not None:
                entry.last_used = time.monotonic()

    # ---- memory ----------------------------------------------------------------------------------

    def pool(self) -> Pool:
        flexmem = self._flexmem
        states = (PageState.GRANTED, PageState.SECURE, PageState.RECALLING)
        granted, secure, recalling = (flexmem.bytes_in(state) for state in states)
        return Pool(granted, secure, recalling, flexmem.resident())

    def memory(self) -> Sequence[ModelMemory]:
        entries = self._open.all()
        return [self._memory_of(entry, shares_work=entry is latest(entries)) for entry in entries]

    def _memory_of(self, entry: OpenModel, *, shares_work: bool) -> ModelMemory:
        with entry.lock:
            idle, used = entry.conversations.committed()
            work = self._services.engine.work_committed if shares_work else 0
            weights = entry.weights
            scratch = entry.context.scratch_committed() + work
            return ModelMemory(
                *(entry.name, weights.size, weights.resident, weights.whole),
                scratch=scratch,
                idle_kv=idle,
                used_kv=used,
                heap=entry.heap,
                running=entry.running,
            )

    def chunks(self, model: str) -> Sequence[tuple[int, int]]:
        entry = self._open.get(model)
        return entry.weights.table.runs() if entry is not None else ()

    def missing(self, model: str) -> Missing:
        entry = self._open.get(model)
        return self._residency.missing(entry.weights) if entry is not None else Missing(0, 0, 0)

    def grant(self, size: int, minimum: int) -> int:
        if self._reserved is None:
            self._reserved = contextlib.ExitStack()
            self._reserved.enter_context(self._residency.expecting())
        return self._flexmem.grant(size, minimum)

    def grant_missing(self, model: str) -> int:
        missing = self.missing(model)
        return self.grant(missing.size, missing.minimum)

    def _unreserve(self) -> None:
        """Let others have what was granted and is not in use."""
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None

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
        entry = self._open.get(model)
        if entry is None:
            return 0
        if kind is Kind.SCRATCH:
            work = entry is latest(self._open.all())
            return entry.release_scratch(keep=keep, work=work)
        if kind is Kind.KV:
            return entry.release_kv(size, keep=keep, sequence=sequence)
        return entry.release_weights(size, keep=keep, until=until)

    def unused(self) -> int:
        return self._flexmem.unused()

    def return_unused(self) -> int:
        return self._flexmem.return_unused()

    def report_returned(self, size: int, reason: str = "") -> None:
        self._flexmem.report_returned(size, reason)

    def load(self, model: str, size: int | None) -> None:
        self._unreserve()
        weights = self._open[model].weights
        count = weights.count if size is None else -(-size // self.chunk)
        self._residency.prefetch(weights, (weights.usual or list(range(weights.count)))[:count])

    def stop_loading(self) -> None:
        self._residency.end_prefetch()

    @property
    def loading(self) -> bool:
        return self._residency.prefetching

    # ---- KV --------------------------------------------------------------------------------------

    def idle_kv(self) -> Sequence[IdleKv]:
        return [kv for entry in self._open.all() for kv in entry.conversations.idle(entry.name)]

    def kv_status(self) -> KvStatus:
        return self._services.counters

    def sealing_size(self, model: str, sequence: int) -> int:
        conversations = self._open[model].conversations
        return conversations.state_size(conversations.slot(sequence))

    def seal(self, model: str, sequence: int) -> None:
        conversations = self._open[model].conversations
        with self._sealing:
            conversations.seal_idle(conversations.slot(sequence))
        self._unreserve()

    def seal_before(self, deadline: float) -> None:
        # One under way takes milliseconds; but it may itself be waiting for a grant, which comes after this.
        patience = min((deadline - time.monotonic()) * _PATIENCE, _MOMENT)
        quiet = self._sealing.acquire(timeout=max(0.0, patience))
        try:
            for entry in self._open.all():
                with entry.lock:
                    if not entry.running and entry.conversations.unsealed():
                        # The plaintext goes where idle scratch was.
                        entry.release_scratch(keep=True, work=entry is latest(self._open.all()))
                        entry.conversations.seal_before(deadline)
        finally:
            if quiet:
                self._sealing.release()

    # ---- life ------------------------------------------------------------------------------------

    def last_moved(self) -> float:
        return self._services.engine.heartbeat.last


def _use(message: Message) -> str | None:
    """Return what a licence has to allow for a request; None: nothing."""
    if isinstance(message, Embed):
        return "vectors" if message.query is None else "ranks"
    return "text" if isinstance(message, Generate) else None


def _known(message: Generate, tokens: Sequence[int]) -> Sequence[int]:
    """Return the prompt's tokens whose KV may be used again: the last one is always computed."""
    return tokens[:-1] if message.reuse and not message.sampling.scores_prompt else []
