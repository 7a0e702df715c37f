"""The trusted application at S-EL0 behind the port that policy sees (protocol.trusted_app).

It does what it is told by messages over a link. What the requests say, and what is answered, is here: this
process renders the templates of unsealed requests. Weights, keys and KV it has as ciphertext only.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from flexserve.errors import CancelledError, FlexServeError
from flexserve.protocol.answers import Finished, Started, Timings, Usage
from flexserve.protocol.failures import foreseen
from flexserve.protocol.prompts import AskTemplate
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
from flexserve.tee_client import steps
from flexserve.tee_client.abilities import cannot, require, require_open
from flexserve.tee_client.application import Application
from flexserve.tee_client.disk import Disk
from flexserve.tee_client.embedding import Embedding
from flexserve.tee_client.files import SealedFiles
from flexserve.tee_client.generation import Generation, Send, known, prepared
from flexserve.tee_client.images import DiskImages, FileImages, Images
from flexserve.tee_client.kept_kv import KvFiles, KvOnDisk
from flexserve.tee_client.link import Link
from flexserve.tee_client.loading import Loading
from flexserve.tee_client.memory import Memory
from flexserve.tee_client.messages import owner_numbers, pseudonym
from flexserve.tee_client.open_models import OpenModels
from flexserve.tee_client.pulse import Pulse
from flexserve.tee_client.rendering import shown_shape
from flexserve.tee_client.request import Admitted, Request
from flexserve.tee_client.sealed import SealedRequests
from flexserve.tee_client.sealed_generation import Opening, SealedGenerate, SealedGeneration
from flexserve.tee_client.services import Services
from flexserve.tee_client.streaming import Streaming
from flexserve.tee_client.trial import try_model
from flexserve.trusted.limits import ModelLimits
from flexserve.trusted.requests import tasks
from flexserve.trusted.requests.conversion import convert, give
from flexserve.trusted.requests.registry import Registry
from flexserve.trusted.text.rendering.renderer import Renderer

_THREADS = 4  # that prepare requests: most of them wait for the helper, or for their turn on the link
_PATIENCE = 0.25  # part of a recall's time that it waits for a step under way, at most


class InsideApp:
    """A TrustedApp; see there for what its methods do. `send`: where answers go."""

    overlaps = True  # a graph begins before all of its weights are there

    def __init__(
        self,
        link: Link,
        files: SealedFiles,
        renderer: Renderer,
        limits: ModelLimits,
        send: Send,
        *,
        threads: int,
        disk: Disk | None = None,
    ) -> None:
        """Greet the application behind `link`, which computes with so many `threads`.

        `disk`: of the guest's, for images of weights and for KV; None: they are in the store's folder.

        Raises PeerError and MachineGoneError.
        """
        self._app = Application(link, threads)
        self._memory = Memory(self._app)
        images = self._images(files, disk)
        kept_kv = KvFiles(files.root) if disk is None else KvOnDisk(disk.image)
        self.sealed = SealedRequests(self._app)
        self._services = Services(
            *(self._app, self._memory, self.sealed, files, images, kept_kv, renderer, limits, KvStatus()),
            streaming=Streaming(self._app),
            overlaps=self.overlaps,
        )
        self._send = send
        self._open = OpenModels(self._services)
        self._loading = Loading(self._memory)
        self._pulse = Pulse(self._app)
        self._requests = Registry[Request]()
        self._computing: Sequence[Request] = ()  # of the step under way
        self._preparation = ThreadPoolExecutor(_THREADS, thread_name_prefix="preparation")
        self.chunk, self.batch = self._app.chunk, self._app.batch

    def _images(self, files: SealedFiles, disk: Disk | None) -> Images:
        return FileImages(self._app, files) if disk is None else DiskImages(disk, self._memory, files)

    # ---- models ----------------------------------------------------------------------------------

    def stored(self) -> Sequence[Stored]:
        return self._open.stored()

    def is_open(self, model: str) -> bool:
        return self._open.is_current(model)

    def opens_at_once(self, model: str) -> bool:
        return self._open.opens_at_once(model)

    def open(self, model: str) -> None:
        require_open(self._services.files.manifest(model))
        with self._pulse.beating():
            self._open.open(model)

    def close(self, model: str, seal_until: float) -> None:
        self._loading.end()
        self._open.close(model, seal_until)

    # ---- requests --------------------------------------------------------------------------------

    def admit(self, message: Admitted, send: Send | None = None) -> Ticket:
        """Take a request in; return what policy may know of it. Any thread.

        `send`: where its answer goes, up to its end, if not where all do. Raises PeerError for a number that
        another request has.
        """
        request = Request(message, time.monotonic(), send or self._send)
        self._requests.admit(message.request, request)
        return request.ticket

    def require(self, request: int) -> None:
        message = self._requests[request].message
        require(message)
        abilities = self._open.abilities(message.model)
        if abilities is not None and isinstance(message, SealedGenerate):
            tasks.require_text(abilities)
        elif abilities is not None and isinstance(message, Generate | Embed | Warm):
            tasks.require(abilities, message)

    def is_prepared(self, request: int) -> bool:
        it = self._requests[request]
        if isinstance(it.message, Convert):
            return it.converted is not None
        if isinstance(it.message, Opening | SealedGenerate):
            return it.message.unsealed is not None
        return it.prepared is not None and it.entry is self._open.get(it.message.model)

    def prepare(self, request: int, done: Callable[[FlexServeError | None], None]) -> None:
        it = self._requests[request]
        held = contextlib.ExitStack()
        it.entry = self._open[it.message.model]
        held.enter_context(it.entry.holding())
        self._preparation.submit(self._prepare, it, held, done)

    def _prepare(
        self, it: Request, held: contextlib.ExitStack, done: Callable[[FlexServeError | None], None]
    ) -> None:
        """Prepare a request beside the engine's thread; its model stays open until it is."""
        error: FlexServeError | None = None
        with held:
            entry, message = it.opened, it.message
            try:
                if isinstance(message, Convert) and isinstance(message.source, AskTemplate):
                    shown = shown_shape(entry.vocabulary)
                    it.converted = msgspec.structs.replace(shown, request=message.request)
                elif isinstance(message, Convert):
                    it.converted = convert(message, entry.template, entry.vocabulary)
                elif isinstance(message, Generate):
                    it.prepared = prepared(message, entry, self._services.renderer)
                elif isinstance(message, Opening):
                    message.unsealed = self.sealed.unseal(entry.number, message.body)
            except BaseException as caught:  # whatever it is, the client hears of it
                error = foreseen(caught)
        done(error)

    def plaintext(self, request: int) -> int:
        it = self._requests[request]
        entry = self._open[it.message.model]
        owner, _, tokens = _prompt_of(it)
        size = entry.conversations.plaintext(owner, tokens, entry.largest_kv)
        return size + entry.lacks if size else 0

    def begin(self, request: int) -> Progress | None:
        it, began = self._requests[request], time.monotonic()
        message, entry = it.message, self._open[it.message.model]
        with self._app.turn(), entry.holding():
            slot = entry.conversations.claim(*_prompt_of(it))
            if slot is None:
                return None
            generation: Generation | SealedGeneration
            if isinstance(message, SealedGenerate):
                generation = SealedGeneration(self._services, entry, message, slot)
            else:
                assert isinstance(message, Generate), "it is no generation"
                generation = Generation(self._services, entry, message, it.ready, slot)
            try:
                generation.begin(it.received, began, it.send)
            except BaseException:
                generation.close()
                raise
        it.uses.callback(generation.close)
        it.generation = generation
        apart = entry.abilities.recurrent
        return Progress(request, generation.pending, sequence=slot.number, apart=apart)

    def guess(self, request: int, draft: str, count: int) -> int:
        del request, draft, count
        raise cannot("check what a smaller model guesses")

    def step(self, model: str, requests: Sequence[int], limit: int) -> Sequence[Progress]:
        generations = [self._generation(request) for request in requests]
        entry = self._open[model]
        self._computing = [self._requests[request] for request in requests]
        try:
            with self._memory.engaged(), entry.holding(), self._pulse.beating():
                return steps.step(self._services, entry, generations, limit)
        finally:
            self._computing = ()

    def resume(self, request: int) -> int:
        return self._generation(request).pending  # a step that breaks off leaves all as it was

    def run(self, request: int) -> Finished:
        it, began = self._requests[request], time.monotonic()
        message, entry = it.message, self._open[it.message.model]
        with self._memory.engaged(), entry.holding(), self._pulse.beating():
            if it.stopped:
                raise CancelledError("The request was cancelled.")
            if it.converted is not None:
                return give(it.converted, it.send)
            if isinstance(message, Opening):
                return Finished(request, "stop", Usage(0, 0), Timings())
            if isinstance(message, Embed):
                it.embedding = it.embedding or Embedding(
                    *(self._services, entry, message),
                    received=it.received,
                    send=it.send,
                    stopped=lambda: it.stopped,
                )
                return it.embedding.run()
            it.send(Started(request, 0))
            loaded, waited = entry.weights.loaded, entry.weights.waited
            entry.weights.load()
            if isinstance(message, Warm):
                timings = Timings(
                    queue=1000 * max(0.0, began - it.received),
                    restore=1000 * (entry.weights.waited - waited),
                    restored_bytes=entry.weights.loaded - loaded,
                )
                return Finished(request, "stop", Usage(0, 0), timings)
            self._open.keep_abilities(entry, try_model(self._services, entry))
            return Finished(request, "stop", Usage(0, 0), Timings())

    def _generation(self, request: int) -> Generation | SealedGeneration:
        generation = self._requests[request].generation
        assert generation is not None, "it has not begun"
        return generation

    def stop(self, request: int) -> None:
        it = self._requests.get(request)
        if it is None:
            return
        it.stopped = True
        computing = self._computing
        if it in computing and all(each.stopped for each in computing):  # nobody waits for what it waits for
            self._services.streaming.give_up(CancelledError("The request was cancelled."))

    def end(self, request: int) -> None:
        it = self._requests.end(request)
        self._memory.unreserve()
        if it is not None:
            with contextlib.suppress(FlexServeError):  # an application that has ended holds nothing any more
                it.uses.close()

    # ---- memory ----------------------------------------------------------------------------------

    def pool(self) -> Pool:
        return self._memory.pool()

    def memory(self) -> Sequence[ModelMemory]:
        found = []
        for entry in self._open.all():
            try:
                found.append(entry.memory())
            except FlexServeError:
                if self._open.get(entry.name) is entry:  # not merely closed since
                    raise
        return found

    def chunks(self, model: str) -> Sequence[tuple[int, int]]:
        entry = self._open.get(model)
        return entry.weights.states() if entry is not None else ()

    def missing(self, model: str) -> Missing:
        entry = self._open.get(model)
        return entry.missing if entry is not None else Missing(0, 0, 0)

    def grant(self, size: int, minimum: int) -> int:
        self._memory.reserve()
        return self._memory.grant(size, minimum)

    def grant_missing(self, model: str) -> int:
        entry = self._open.get(model)
        room = entry.room() if entry is not None else 0
        rest = self.missing(model).size - max(room, 0)
        return room + self.grant(rest, rest)

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
        del sequence  # KV goes as one
        entry = self._open.get(model)
        if entry is None:
            return 0
        if kind is not Kind.WEIGHTS:
            return entry.release(kind, keep=keep)
        if entry.running and time.monotonic() >= until:
            return 0
        return entry.weights.evict(size, keep=keep)

    def unused(self) -> int:
        return self._memory.unused()

    def return_unused(self) -> int:
        return self._memory.give_back()

    def report_returned(self, size: int, reason: str = "") -> None:
        """Say nothing: the machine's OS has its pages when they are given back."""

    def load(self, model: str, size: int | None) -> None:
        self._memory.unreserve()
        weights = self._open[model].weights
        self._loading.begin(weights, weights.count if size is None else self._memory.chunks(size))

    def stop_loading(self) -> None:
        self._loading.end()

    @property
    def loading(self) -> bool:
        return self._loading.under_way

    # ---- KV --------------------------------------------------------------------------------------

    def idle_kv(self) -> Sequence[IdleKv]:
        found = []
        for entry in self._open.all():
            with contextlib.suppress(FlexServeError):  # it was closed since
                idle = entry.conversations.idle(entry.name, entry.kv())
                found += [idle] if idle is not None else []
        return found

    def kv_status(self) -> KvStatus:
        return self._services.counters

    def sealing_size(self, model: str, sequence: int) -> int:
        del sequence
        entry = self._open[model]
        return entry.largest_kv // entry.sequences + self.chunk

    def seal(self, model: str, sequence: int) -> None:
        del sequence  # the one used longest ago goes first
        with self._app.turn():
            self._open[model].conversations.seal_idle()
        self._memory.unreserve()

    def seal_before(self, deadline: float) -> None:
        patience = (deadline - time.monotonic()) * _PATIENCE
        with self._app.turn(within=max(0.0, patience)) as ours:
            if not ours:
                return
            for entry in self._open.all():
                if not entry.running and entry.conversations.unsealed():
                    entry.release(Kind.SCRATCH, keep=True)  # the plaintext goes where idle scratch was
                    entry.conversations.seal_before(deadline)

    # ---- life ------------------------------------------------------------------------------------

    def last_moved(self) -> float:
        return self._app.last_answer


def _prompt_of(it: Request) -> tuple[str, Sequence[int], Sequence[int]]:
    """Return the owner of a generation, its prompt as others may wait for it, and what may be used again."""
    message = it.message
    if isinstance(message, SealedGenerate):
        return pseudonym(message.unsealed.owner), (), message.known
    assert isinstance(message, Generate), "it is no generation"
    tokens = it.ready.prompt.tokens
    return pseudonym(owner_numbers(message.owner)), tokens, known(message, tokens)
