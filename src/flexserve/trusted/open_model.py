"""A model that is open: what it computes with, and who uses it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from flexserve.errors import CallerError, GrantRefusedError
from flexserve.protocol.statuses import Abilities, KvStatus
from flexserve.trusted.engine.abilities import abilities_of
from flexserve.trusted.engine.context import Context
from flexserve.trusted.engine.model import Model
from flexserve.trusted.engine.runtime import Engine
from flexserve.trusted.engine.vocabulary import Vocabulary
from flexserve.trusted.kv.conversations import Conversations
from flexserve.trusted.kv.sealed import SealedKv
from flexserve.trusted.limits import ModelLimits
from flexserve.trusted.memory.flexmem import REFUSED_HINT
from flexserve.trusted.store.image import DamagedImageError
from flexserve.trusted.store.manifest import Manifest
from flexserve.trusted.store.store import Store
from flexserve.trusted.text.chat_template import ChatTemplate
from flexserve.trusted.text.rendering.renderer import Renderer
from flexserve.trusted.weights.chunks import Weights
from flexserve.trusted.weights.residency import Residency
from flexserve.units import format_size

R = TypeVar("R")

# Ordinary memory, not Flex-Mem, that opening a model takes at its peak for each byte of its header: Python's
# list of the vocabulary, llama.cpp's copy of the header and its maps. Measured as the growth of VmHWM with
# SentencePiece vocabularies of 65,536 and 262,144 tokens: 17.1 and 17.2 (400 bytes a token), beside 7 MB that
# any model takes.
_HEAP_OF_HEADER = 18


@dataclasses.dataclass(frozen=True, slots=True)
class Services:
    """What models are opened with. `shares_heap`: Flex-Mem comes from the memory that the heap is in."""

    engine: Engine
    residency: Residency
    store: Store
    renderer: Renderer
    limits: ModelLimits
    counters: KvStatus
    shares_heap: bool


class OpenModel:
    """A model ready for use.

    `lock` guards who uses it: the users here, and the slots of its conversations. It is never held while a
    graph computes or the normal world is asked.
    """

    def __init__(self, services: Services, name: str, abilities: Abilities | None) -> None:
        """Open model `name`; `abilities`: what was found that it can do, if somebody tried.

        Raises UnknownModelError, StoredDataError, CallerError (larger than memory), GrantRefusedError and
        NormalWorldError (disk full); nothing stays open then.
        """
        self._services, self.name = services, name
        engine, self.limits = services.engine, services.limits.of(name)
        self.lock = threading.RLock()
        self._users = 0  # beside the busy slots
        self.last_used = time.monotonic()
        self._model = Model(engine, services.store, name)
        try:
            self.vocabulary = Vocabulary(self._model)
            self.template = ChatTemplate(self._model.header.chat_template, self.vocabulary, services.renderer)
            self.possible = abilities_of(self._model)  # before anything was computed
            self.abilities = abilities or self.possible
            sealed = SealedKv(
                *(services.store, name, engine.fingerprint, engine.flexmem),
                form=f"{self.limits.kv}, {self.limits.context_of(self.manifest.context_length)} tokens",
                quota=self.limits.sealed_kv,
                counters=services.counters,
            )
            # Last: when this fails there is only the model to close.
            self.context = Context(
                *(self._model, services.residency, self.limits.context),
                self.limits.sequences_of(self.manifest.architecture),
                kv_type=self.limits.kv,
            )
        except BaseException:
            self._model.close()
            raise
        self.conversations = Conversations(self.context, sealed, self.lock)

    def close(self, seal_until: float) -> None:
        """Close it, having sealed its KV as far as `seal_until` (monotonic seconds) allows."""
        for slot in self.conversations.unsealed():
            if time.monotonic() < seal_until:
                self.conversations.seal_idle(slot)
        self._report(self._services.residency.retire(self.weights))
        self.context.close()
        self._model.close()

    @property
    def manifest(self) -> Manifest:
        """What the store says of it."""
        return self._model.manifest

    @property
    def weights(self) -> Weights:
        """Its weights."""
        return self._model.weights

    @property
    def heap(self) -> int:
        """Bytes of ordinary memory that it took at most when it was opened, and has until it is closed."""
        return sum(_heap_of(manifest) for manifest in self._model.manifests)

    @property
    def running(self) -> bool:
        """Whether a request uses it now."""
        return self._users > 0 or self.conversations.busy

    # ---- use --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Keep it open inside the block. Left in any thread."""
        with self.lock:
            self._users += 1
        try:
            yield
        finally:
            with self.lock:
                self._users -= 1
                self.last_used = time.monotonic()

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """Have scratch inside the block, kept from recalls. Raises GrantRefusedError."""
        with self.holding():
            self.context.prepare()
            yield

    def mended(self, work: Callable[[], R]) -> R:
        """Do `work` with the weights; when their image is damaged, mend it, and do it once more.

        Raises what `work` raises, and as `mend`.
        """
        try:
            return work()
        except DamagedImageError:
            self.mend()
            return work()

    def mend(self) -> None:
        """Make the damaged image anew from the sealed file; none of the weights is in memory then.

        Between two graphs. KV stays. Raises as `Model.remake_image`.
        """
        self._report(self._services.residency.retire(self.weights))
        self._model.remake_image()

    # ---- memory ------------------------------------------------------------------------------------

    def release_scratch(self, *, keep: bool, work: bool) -> int:
        """Give scratch up, unless somebody uses it; return the bytes. `work`: the engine's work area, too."""
        with self.lock:
            if self.running:
                return 0
            size = self.context.release_scratch(keep_grants=keep)
            return size + (self._services.engine.release_work(keep_grants=keep) if work else 0)

    def release_kv(self, size: int, *, keep: bool, sequence: int | None) -> int:
        """Give about `size` bytes of idle KV up (None: of any `sequence`); return the bytes."""
        with self.lock:
            return self.conversations.give_up(size, keep_grants=keep, sequence=sequence)

    def release_weights(self, size: int, *, keep: bool, until: float) -> int:
        """Give about `size` bytes of weights up, from the end of their order; return the bytes.

        Of a model that runs, between two slices: 0 when there was none before `until` (monotonic seconds).
        """
        with self.lock:  # nobody begins to use it meanwhile
            if not self.running:
                return self._evict(size, keep=keep)
        with self._services.residency.gate.shut(max(0.0, until - time.monotonic())) as shut:
            return self._evict(size, keep=keep) if shut else 0

    def _evict(self, size: int, *, keep: bool) -> int:
        order = self.weights.eviction_order()
        # All is all: where buffers end in short chunks, there are more of them than bytes would say.
        count = (
            len(order) if size >= self.weights.resident else -(-size // self._services.engine.flexmem.chunk)
        )
        return self._services.residency.evict(self.weights, order[:count], keep_grants=keep)

    def _report(self, size: int) -> None:
        self._services.engine.flexmem.report_returned(size)


def _heap_of(manifest: Manifest) -> int:
    return _HEAP_OF_HEADER * manifest.metadata_bytes


def require_room(manifest: Manifest) -> None:
    """Raise CallerError when a model is larger than the machine's memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if manifest.size > memory:
        raise CallerError(
            f"{manifest.name} needs {format_size(manifest.size)}; "
            f"this machine has {format_size(memory)} of memory.",
            hint="Use a smaller model or a stronger quantization.",
            code="model_too_large",
        )


def require_heap(services: Services, manifest: Manifest) -> None:
    """See to it that the OS has the ordinary memory that opening a model takes.

    Raises GrantRefusedError when it has not; nothing of the model was read then but its manifest.
    """
    if not services.shares_heap:
        return
    size = _heap_of(manifest)
    flexmem = services.engine.flexmem
    had = flexmem.grant(size, minimum=size)
    if had >= size:
        flexmem.report_returned(flexmem.return_unused())  # the heap takes it from the OS, not from us
        return
    raise GrantRefusedError(
        f"Opening {manifest.name} takes {format_size(size)} of memory, which were not granted.",
        hint=REFUSED_HINT,
        missing=size - had,
    )
