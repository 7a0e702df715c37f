"""A model that the trusted application has open: what it is asked with, and who uses it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from flexserve.errors import GrantRefusedError
from flexserve.protocol.statuses import Abilities
from flexserve.protocol.trusted_app import Kind, Missing, ModelMemory
from flexserve.tee_client.application import REFUSED_HINT
from flexserve.tee_client.conversations import Conversations
from flexserve.tee_client.files import SealedFile
from flexserve.tee_client.messages import Ask, Status, broken
from flexserve.tee_client.sealed_kv import SealedKv
from flexserve.tee_client.services import Services
from flexserve.tee_client.vocabulary import Vocabulary
from flexserve.tee_client.weights import Weights
from flexserve.trusted.limits import no_kv
from flexserve.trusted.requests.tasks import ENCODERS, NO_TEXTS, NO_VECTORS
from flexserve.trusted.text.chat_template import ChatTemplate
from flexserve.units import MIB, format_size

# Heap that opening a model takes: of any model; for each byte of its metadata (llama.cpp's copy of them, and
# its maps of the vocabulary); and for each token that its KV has room for (where it is).
_HEAP, _HEAP_OF_METADATA, _HEAP_OF_TOKEN = 8 * MIB, 18, 144
_RANK = "4"  # llama.cpp's pooling by which a model ranks texts
_MOST_CHUNKS = 1 << 16
_MOST_CONTEXT = 1 << 20  # tokens


class OpenModel:
    """A model ready for use. `lock` guards who uses it, and is held while idle memory of it is given up."""

    def __init__(self, services: Services, number: int, name: str) -> None:
        """Open model `name` as `number`. Its weights are in memory if they had to be written.

        Raises UnknownModelError, StoredDataError, GrantRefusedError and NormalWorldError; nothing stays open.
        """
        self._services, self.number, self.name = services, number, name
        self.limits = services.limits.of(name)
        self.lock = threading.RLock()
        self._users = 0  # beside the sequences in use
        self.last_used = time.monotonic()
        with services.sealed.opened(services.files, name) as file:
            self.manifest = file.manifest
            self.sequences = self.limits.sequences_of(self.manifest.architecture)
            self.heap = self._take_heap(self._expected_heap())
            try:
                self._open(file)
            except BaseException:
                self._give_heap()
                raise

    def _open(self, file: SealedFile) -> None:
        services, manifest, limits = self._services, file.manifest, self.limits
        context = limits.context_of(manifest.context_length)
        sizes = (manifest.size, context, self.sequences, manifest.metadata_bytes)
        reply = services.app.ask(Ask.OPEN, self.number, *sizes, payload=file.opening(limits.kv))
        if reply.status is Status.UNSUPPORTED and limits.kv != "f16":
            raise no_kv(limits.kv)
        if reply.status is not Status.DONE:
            raise services.app.error(Ask.OPEN, reply)
        chunks, self._kv, self._scratch, recurs, self.context = reply.values
        self._lacks = {Kind.KV: self._kv, Kind.SCRATCH: self._scratch}  # chunks
        self.weights = Weights(services, manifest, self.number, chunks)
        try:
            if max(self._kv, self._scratch) > _MOST_CHUNKS or not 0 < self.context <= _MOST_CONTEXT:
                raise broken("what it says of a model's memory is none")
            self.vocabulary = Vocabulary(services.app, self.number)
            own = self.vocabulary.described("tokenizer.chat_template")
            self.template = ChatTemplate(own, self.vocabulary, services.renderer)
            self.abilities = self._abilities(template=bool(own), recurrent=recurs == 1)
            sealed = SealedKv(services, manifest, self.number, limits.sealed_kv)
            self.conversations = Conversations(sealed, self.sequences, self.lock)
            self.weights.open_image(file, self.lacks)
        except BaseException:
            self.weights.close()
            services.app.do(Ask.CLOSE, self.number)
            raise

    def _abilities(self, *, template: bool, recurrent: bool) -> Abilities:
        """Return what its metadata say that it can do; whoever tried knows better."""
        architecture = self.manifest.architecture
        causal = self.vocabulary.described(f"{architecture}.attention.causal") != "false"
        ranks = self.vocabulary.described(f"{architecture}.pooling_type") == _RANK
        window = self.vocabulary.described(f"{architecture}.attention.sliding_window")
        encodes, usable = architecture in ENCODERS, architecture not in NO_TEXTS
        return Abilities(
            text=usable and causal and not encodes,
            vectors=usable and architecture not in NO_VECTORS and not ranks,
            encoder=encodes,
            causal=causal,
            window=int(window[:9]) if window.isdecimal() else 0,
            recurrent=recurrent,
            template=template,
            tools="none",
            ranks=usable and ranks,
        )

    def close(self, seal_until: float) -> None:
        """Close it, and give its memory back, having sealed its KV as far as `seal_until` allows."""
        with self._services.app.turn():
            self.conversations.seal_before(seal_until)
        self.weights.close()
        before = self._services.memory.unused()
        self._services.app.do(Ask.CLOSE, self.number)
        self._give_heap()
        self._services.memory.give_back(max(0, self._services.memory.unused() - before))

    # ---- its heap ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def more_heap(self) -> Iterator[None]:
        """Have heap for one more context of llama.cpp's inside the block. Raises GrantRefusedError."""
        given = self._take_heap(self.heap)
        try:
            yield
        finally:
            if given:
                self._services.memory.take_heap(given)

    def _expected_heap(self) -> int:
        manifest = self.manifest
        tokens = self.limits.context_of(manifest.context_length) * self.sequences
        return _HEAP + _HEAP_OF_METADATA * manifest.metadata_bytes + _HEAP_OF_TOKEN * tokens

    def _take_heap(self, size: int) -> int:
        """Have so much heap, inside the secure OS; return the bytes. Raises GrantRefusedError."""
        if not self._services.app.inside:
            return 0
        memory = self._services.memory
        size = memory.chunks(size) * memory.chunk
        had = memory.grant(size, size)
        if had < size:
            raise GrantRefusedError(
                f"{self.name} takes {format_size(size)} of memory beside its own, which were not granted.",
                hint=REFUSED_HINT,
                missing=size - had,
            )
        given = memory.give_heap(size)
        if given < size:
            memory.take_heap(given)
            raise GrantRefusedError(
                "The memory was wanted elsewhere.", hint=REFUSED_HINT, missing=size - given
            )
        return size

    def _give_heap(self) -> None:
        if self.heap:
            self._services.memory.take_heap(self.heap)

    # ---- use -----------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether a request uses it now."""
        return self._users > 0 or self.conversations.busy

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

    # ---- memory --------------------------------------------------------------------------------------

    def memory(self) -> ModelMemory:
        """Return what it has in memory. Any thread."""
        scratch, kv, _ = self._committed()
        with self.lock:
            running, used = self.running, self.conversations.busy
        return ModelMemory(
            *(self.name, self.weights.size, self.weights.resident, self.weights.whole),
            scratch=scratch,
            idle_kv=0 if used else kv,
            used_kv=kv if used else 0,
            heap=self.heap,
            running=running,
        )

    def kv(self) -> int:
        """Return the bytes of KV in memory. Any thread."""
        return self._committed()[1]

    @property
    def largest_kv(self) -> int:
        """Bytes of KV that it has while it computes."""
        return self._kv * self._services.memory.chunk

    @property
    def reads_whole(self) -> bool:
        """Whether it takes a text that is to be a vector, or to be ranked, in by one graph."""
        return self.abilities.encoder or self.abilities.ranks or not self.abilities.causal

    @property
    def largest_text(self) -> int:
        """Tokens of a text that is to be a vector, or to be ranked, at most."""
        return min(self.context, self._services.app.batch) if self.reads_whole else self.context

    @property
    def lacks(self) -> int:
        """Bytes of KV and scratch that it has not, as far as is known, and needs to compute."""
        return sum(self._lacks.values()) * self._services.memory.chunk

    @property
    def missing(self) -> Missing:
        """Weights, KV and scratch that it lacks: it computes with all of them."""
        size = self.weights.size - self.weights.resident + self.lacks
        return Missing(size, size, size)

    def room(self) -> int:
        """Return for how many bytes of the weights that it lacks nothing is granted before they come.

        Less than 0: so much more has to make way.
        """
        lacks = self.weights.size - self.weights.resident
        return min(lacks, self._services.images.room()) if lacks else 0

    def computed(self) -> None:
        """Record that it computed: it has KV and scratch."""
        self._lacks.clear()

    def _committed(self) -> tuple[int, int, int]:
        scratch, kv, weights, *_ = self._services.app.do(Ask.RESIDENT, self.number).values
        if scratch > self._scratch or kv > self._kv or weights > self.weights.count:
            raise broken("what it says of a model's memory is none")
        chunk = self._services.memory.chunk
        return scratch * chunk, kv * chunk, weights * chunk

    def release(self, kind: Kind, *, keep: bool) -> int:
        """Give scratch or idle KV up, unless a request uses it; return the bytes. Any thread."""
        with self.lock:
            if self.running:
                return 0
            went = self._services.memory.evict(self.number, kind, keep=keep)
            if went:
                self._lacks[kind] = self._kv if kind is Kind.KV else self._scratch
            if kind is Kind.KV and went:
                self.conversations.gone()
            return went
