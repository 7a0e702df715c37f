"""What stands in for llama.cpp in tests of what is above it: a vocabulary, a model, contexts.

The fake model answers what is in its KV cache up to the last ">" with the first characters of its digest, and
then ends. It reads the tokens from secure memory, and each graph every chunk of the weights: what was taken
away, or came back wrong, gives another answer or an error. Like llama.cpp, it forgets what it is told to,
goes on behind what it has, cannot tell what a graph that broke off left behind, and computes in slices
between which it can be cancelled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from fake_engine import CHUNK, FakeGraph, FakeSource
from numpy.typing import NDArray

from flexserve.errors import CallerError, CancelledError, InternalError
from flexserve.platforms.ports import Arena
from flexserve.protocol.statuses import Abilities
from flexserve.trusted import open_model
from flexserve.trusted.engine.context import Span
from flexserve.trusted.engine.kv import KvCache
from flexserve.trusted.heartbeat import Heartbeat
from flexserve.trusted.memory.flexmem import FlexMem
from flexserve.trusted.requests import embedding, trial
from flexserve.trusted.store import Store
from flexserve.trusted.store.image import DamagedImageError
from flexserve.trusted.text.grammar import TokenTree
from flexserve.trusted.text.markers import Markers
from flexserve.trusted.text.tokenizer import Gap
from flexserve.trusted.weights.chunks import Part, Weights
from flexserve.trusted.weights.job import RestoreStats
from flexserve.trusted.weights.residency import Residency

END = 256  # the token that ends an answer
CONTEXT = 512  # tokens
OUTPUTS = 4  # logits that a graph makes
CHUNKS = (5, 3)  # of a model's weights
_RECORD = 64  # bytes of a token in the KV cache
_STRIDE = CONTEXT * _RECORD  # of a sequence
_SCRATCH = 2 * CHUNK
_WIDTH = 4  # of a vector
WHOLE = sum(CHUNKS) * CHUNK
KV = _STRIDE


def answer_to(prompt: str) -> str:
    """Return what the fake model says to `prompt`."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:8]


class FakeVocabulary:
    """A token for each byte, and one that ends answers."""

    size, endings = END + 1, [END]
    begins = False
    fingerprint = "bytes"

    def __init__(self, model: FakeModel) -> None:
        self.markers = Markers(["<end>"])
        self.size = END + 1
        self.gap = Gap(1, 2, 3, 4)

    def encode(self, text: str, *, special: bool, start: bool = True) -> list[int]:
        return list(text.encode())

    def encode_parts(self, parts: Sequence[tuple[str, bool]], *, start: bool) -> list[int]:
        return [token for text, _ in parts for token in text.encode()]

    def structure(self, template: str) -> Markers:
        return self.markers

    def text_of(self, key: str) -> str:
        return ""

    def piece(self, token: int, *, special: bool = False) -> bytes:
        return bytes([token]) if token < END else b"<end>" if special else b""

    def ends(self, token: int) -> bool:
        return token == END

    def shown(self, _marks: list[str]) -> dict[int, bytes]:
        return {}

    def tree(self, _shown: object = None) -> TokenTree:
        return TokenTree(self, END + 1)


class FakeEngine:
    """What the engine is to those above it. `inside` is called after each slice of a graph."""

    fingerprint, identity = "fake CPU", "fake engine"

    def __init__(self, flexmem: FlexMem) -> None:
        self.flexmem = flexmem
        self.heartbeat = Heartbeat()
        self.inside: Callable[[FakeContext], None] = lambda _context: None
        self._work = flexmem.reserve(CHUNK)

    @property
    def work_committed(self) -> int:
        return self.flexmem.committed(self._work)

    def prepare(self) -> None:
        self.flexmem.commit_missing(self._work)

    def release_work(self, *, keep_grants: bool = False) -> int:
        give_up = self.flexmem.recycle_all if keep_grants else self.flexmem.release_all
        return give_up(self._work)


class ImageSource(FakeSource):
    """Weights from an image: what is wrong with it is the image's fault."""

    def decrypt(self, buffer: int, index: int, target: memoryview) -> float:
        if (buffer, index) in self.damaged:
            target[:] = bytes(len(target))
            raise DamagedImageError("It is not what was written.", hint="Make it anew.")
        return super().decrypt(buffer, index, target)


class FakeModel:
    """A sealed model, opened; `vectors`, `text`, `ranks`: what it can do."""

    text = vectors = True
    ranks = False
    goes_back = True  # its cache can forget a part of what it has

    def __init__(self, engine: FakeEngine, store: Store, name: str) -> None:
        self.engine, self.name = engine, name
        with store.open(name) as sealed:
            self.manifest = sealed.manifest
            self.header = sealed.header().without_lists()
        self.manifests = [self.manifest]
        self.source = ImageSource()
        sizes = [count * CHUNK - 1000 for count in CHUNKS]
        parts = [
            Part(engine.flexmem.reserve(count * CHUNK), size)
            for count, size in zip(CHUNKS, sizes, strict=True)
        ]
        self.weights = Weights(name, parts, self.source, CHUNK)
        self.remade = 0
        self.error: Exception | None = None  # that making the image anew raises

    def remake_image(self) -> None:
        if self.error is not None:
            raise self.error
        self.source.damaged.clear()
        self.remade += 1

    def close(self) -> None:
        for part in self.weights.parts:
            free(self.engine.flexmem, part.arena)


class FakeContext:
    """Sequences of tokens whose KV is in Flex-Mem."""

    prompts_apart = False

    def __init__(
        self, model: FakeModel, residency: Residency, context: int, sequences: int, *, kv_type: str = "f16"
    ) -> None:
        self.kv_type = kv_type
        self.model, self.size, self.sequences = model, min(context, CONTEXT), sequences
        self.outputs = max(sequences, OUTPUTS)
        self._engine, self._residency, self._flexmem = model.engine, residency, model.engine.flexmem
        self._cache = self._flexmem.reserve(sequences * _STRIDE)
        self._scratch = self._flexmem.reserve(_SCRATCH)
        self.kv = KvCache(self._flexmem, sequences)
        self.kv.add(self._cache, self._cache.base, self._cache.size, [1, CONTEXT, sequences, 1], _STRIDE)
        self._held = [0] * sequences  # tokens
        self._rows: list[Span] = []
        self._cancelled = False
        self.stats = RestoreStats()

    def close(self) -> None:
        for arena in (self._cache, self._scratch):
            free(self._flexmem, arena)

    # ---- memory ----------------------------------------------------------------------------------

    def prepare(self) -> None:
        self._flexmem.commit_missing(self._scratch)

    def release_scratch(self, *, keep_grants: bool = False) -> int:
        give_up = self._flexmem.recycle_all if keep_grants else self._flexmem.release_all
        return give_up(self._scratch)

    def scratch_committed(self) -> int:
        return self._flexmem.committed(self._scratch)

    def take(self, sequence: int, keep: int) -> int:
        self.kv.take(sequence)
        self._held[sequence] = self.usable(sequence, keep)
        return self._held[sequence]

    def usable(self, sequence: int, keep: int) -> int:
        held = self._held[sequence]
        return keep if keep == held or (keep < held and self.model.goes_back) else 0

    @property
    def goes_back(self) -> bool:
        return self.model.goes_back

    def usable_saved(self, count: int, keep: int) -> int:
        return keep if keep == count or self.model.goes_back else 0

    def release(self, sequences: Sequence[int], *, keep_grants: bool = False) -> int:
        return self.kv.release(sequences, keep_grants=keep_grants)

    def state_size(self, sequence: int) -> int:
        return self._held[sequence] * _RECORD

    def save(self, sequence: int, target: memoryview) -> int:
        size = self.state_size(sequence)
        with self._flexmem.view(self._cache, sequence * _STRIDE, _STRIDE) as view:
            target[:size] = view[:size]
        return size

    def load(self, sequence: int, source: memoryview) -> bool:
        if len(source) > _STRIDE:
            return False
        with self._flexmem.view(self._cache, sequence * _STRIDE, _STRIDE) as view:
            view[: len(source)] = source
        self._held[sequence] = len(source) // _RECORD
        return True

    # ---- tokens ----------------------------------------------------------------------------------

    def decode(self, spans: Sequence[Span]) -> RestoreStats:
        self._cancelled, stats = False, RestoreStats()
        assert sum(len(span.tokens) if span.scored else 1 for span in spans) <= self.outputs
        for span in spans:
            if span.start != self._held[span.sequence]:
                raise InternalError("The tokens do not go on where the sequence ends.")
        try:
            self._compute(stats)
        except BaseException:
            for span in spans:  # a part of them got that far
                self._write(span.sequence, span.tokens[: len(span.tokens) // 2])
            raise
        for span in spans:
            self._write(span.sequence, span.tokens)
        self._rows = list(spans)
        return stats

    def _compute(self, stats: RestoreStats) -> None:
        if not self.scratch_committed():
            raise InternalError("It computes without scratch.")
        self._engine.prepare()
        machine: Any = self  # as far as graphs need one
        graph = FakeGraph(machine, [[chunk] for chunk in range(self.weights.count)], self._after_slice)
        self._residency.compute(self.weights, graph, stats)

    def _after_slice(self, _node: int) -> None:
        self._engine.inside(self)
        self._engine.heartbeat.beat()
        if self._cancelled:
            raise CancelledError("The request was cancelled.")

    @property
    def weights(self) -> Weights:
        return self.model.weights

    @property
    def flexmem(self) -> FlexMem:
        return self._flexmem

    def _write(self, sequence: int, tokens: Sequence[int]) -> None:
        at = sequence * _STRIDE + self._held[sequence] * _RECORD
        data = b"".join(token.to_bytes(2, "little").ljust(_RECORD, b"+") for token in tokens)
        with self._flexmem.view(self._cache, at, len(data)) as view:
            view[:] = data
        self._held[sequence] += len(tokens)

    def _read(self, sequence: int) -> bytes:
        size = self._held[sequence] * _RECORD
        with self._flexmem.view(self._cache, sequence * _STRIDE, size) as view:
            data = bytes(view)
        records = [data[at : at + _RECORD] for at in range(0, size, _RECORD)]
        assert all(record[2:] == b"+" * (_RECORD - 2) for record in records), "its KV is not what was written"
        return bytes(record[0] for record in records)

    def logits(self, span: int) -> NDArray[np.float32]:
        if not self.model.text:
            raise ValueError("NULL pointer access")
        return _scores(self._read(self._rows[span].sequence))

    def scores(self, span: int, count: int) -> NDArray[np.float32]:
        scored = self._rows[span]
        assert scored.scored
        assert len(scored.tokens) == count
        text = self._read(scored.sequence)
        return np.stack([_scores(text[: scored.start + place]) for place in range(1, count + 1)])

    def restore(self) -> RestoreStats:
        stats = RestoreStats()
        self._residency.restore(self.weights, stats)
        return stats

    def cancel(self) -> None:
        self._cancelled = True
        self._residency.cancel()


def _scores(text: bytes) -> NDArray[np.float32]:
    """Return the logits after `text`."""
    prompt, mark, said = text.rpartition(b">")
    said_next = answer_to((prompt + mark).decode())[len(said) :]
    scores = np.linspace(-4, -9, END + 1, dtype=np.float32)
    scores[ord(said_next[0]) if said_next else END] = 3
    return scores


class FakeEmbedder(FakeContext):
    """Counts the letters of a text: its vector says how many there are of a, b, c and others."""

    def __init__(self, beside: FakeContext, *, ranks: bool = False) -> None:
        if not (beside.model.ranks if ranks else beside.model.vectors):
            raise CallerError("It makes no such numbers.", hint="Use another.", code="embeddings_unsupported")
        super().__init__(beside.model, beside._residency, beside.size, 1)

    def embed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        if not 0 < len(tokens) <= self.size:
            raise CallerError("The text is too long.", hint="Shorten it.")
        self.prepare()
        self._compute(self.stats)
        vector = np.zeros(_WIDTH, np.float32)
        for token in tokens:
            vector[min(max(token - ord("a"), 0), _WIDTH - 1)] += 1
        return vector / np.linalg.norm(vector)


def free(flexmem: FlexMem, arena: Arena) -> None:
    """Free an arena as the hooks do: the OS is told of its memory."""
    flexmem.report_returned(flexmem.free(arena))


def install(patch: pytest.MonkeyPatch) -> None:
    """Have models opened with the fakes in place of llama.cpp, inside of one test."""
    fakes: dict[Any, dict[str, object]] = {
        open_model: {
            "Model": FakeModel,
            "Vocabulary": FakeVocabulary,
            "Context": FakeContext,
            "abilities_of": _abilities_of,
        },
        embedding: {"Embedder": FakeEmbedder},
        trial: {"Embedder": FakeEmbedder},
    }
    for module, parts in fakes.items():
        for name, part in parts.items():
            patch.setattr(module, name, part)


def _abilities_of(model: FakeModel) -> Abilities:
    return Abilities(
        *(model.text, model.vectors),
        encoder=False,
        causal=True,
        window=0,
        recurrent=not model.goes_back,
        template=True,
        tools="none",
    )
