"""A model of any family in FlexServe's engine and in plain llama.cpp, each in a process of its own.

The engine's hooks are for good, so plain llama.cpp cannot be asked in the same process.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from guard import guard_buffers
from numpy.typing import NDArray
from real_engine import RealEngine

from flexserve.protocol.model_options import KvType
from flexserve.testing.architectures import make_model, make_models
from flexserve.testing.architectures.parameters import Parameters

CONTEXT, SEQUENCES, THREADS = 512, 2, 1  # the same in both worlds
Logprobs = NDArray[np.float64]
Vector = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Said:
    """What came of a prompt: how many tokens were there already, and the log-probabilities after it."""

    kept: int
    logprobs: Logprobs


class Families:
    """Models of many families, and the two worlds that run them. A context manager."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        """Make models of these families; others are made when they are opened."""
        self._folder = folder
        assert make_models(names, folder, quantised=False) == {}
        self._plain, self._ours = self._pool(), self._pool()

    def _pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, get_context("spawn"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._plain.shutdown()
        self._ours.shutdown()

    def open(
        self,
        family: str,
        variant: str = "",
        parameters: Parameters | None = None,
        *,
        sequences: int = SEQUENCES,
        kv_type: KvType = "f16",
    ) -> None:
        """Have a model of that family opened in both worlds instead of what was open; made the first time."""
        path = self._folder / f"{family}{variant}.gguf"
        if not path.exists():
            make_model(family, path, parameters=parameters, quantised=False)
        self._plain.submit(_open_plain, path, sequences, kv_type).result()
        self._ours.submit(_open_ours, path, self._folder, sequences, kv_type).result()

    def plain(self, tokens: list[int], pieces: Sequence[int]) -> Logprobs:
        """Return plain llama.cpp's log-probabilities after `tokens`, computed in pieces of these sizes."""
        return self._plain.submit(_plain, tokens, list(pieces)).result()

    def ask(self, tokens: list[int], answer: Sequence[int] = ()) -> list[Said]:
        """Have a request of ours: a prompt, then the tokens of its answer one by one."""
        return self._ours.submit(_ask, tokens, list(answer)).result()

    def ask_together(
        self, first: list[int], second: list[int], piece: int, steps: int
    ) -> tuple[Logprobs, Logprobs]:
        """Have two prompts in two slots: the first `piece` tokens of both, if they may, and the last
        `steps` are computed in common graphs."""
        return self._ours.submit(_ask_together, first, second, piece, steps).result()

    def plain_vector(self, tokens: list[int], pooling: int) -> Vector:
        """Return the vector that plain llama.cpp makes of a text in one go, of length 1."""
        return self._plain.submit(_plain_vector, tokens, pooling).result()

    def vectors(self, texts: list[list[int]]) -> list[Vector]:
        """Have a request of ours: texts to vectors."""
        return self._ours.submit(_vectors, texts).result()

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text, as a request for vectors has them."""
        return self._ours.submit(_tokens, text).result()

    def recall_all(self) -> None:
        """Take all KV back, having sealed it, as a recall does."""
        self._ours.submit(_recall_all).result()


# ---- plain llama.cpp -------------------------------------------------------------------------------


def _open_plain(path: Path, sequences: int, kv_type: KvType) -> None:
    global _model, _context  # noqa: PLW0603  # the process is for this alone
    from llama_cpp import llama_cpp as lib

    if "_context" in globals():
        lib.llama_free(_context)
        lib.llama_model_free(_model)
    else:
        lib.llama_log_set(_silent(lib), None)
        lib.llama_backend_init()
    parameters = lib.llama_model_default_params()
    parameters.n_gpu_layers = 0
    _model = lib.llama_model_load_from_file(str(path).encode(), parameters)
    parameters = lib.llama_context_default_params()
    parameters.n_ctx, parameters.n_seq_max = sequences * CONTEXT, sequences
    parameters.n_batch = parameters.n_ubatch = CONTEXT
    parameters.n_threads = parameters.n_threads_batch = THREADS
    parameters.kv_unified = False
    parameters.type_k = parameters.type_v = getattr(lib, f"GGML_TYPE_{kv_type.upper()}")
    _context = lib.llama_init_from_model(_model, parameters)


_callback: Any = None  # it has to live as long as the library


def _silent(lib: Any) -> object:
    global _callback  # noqa: PLW0603
    _callback = lib.llama_log_callback(lambda _level, _text, _data: None)
    return _callback


def _plain(tokens: list[int], pieces: list[int]) -> Logprobs:
    from llama_cpp import llama_cpp as lib

    assert sum(pieces) == len(tokens)
    lib.llama_memory_clear(lib.llama_get_memory(_context), True)
    for stop, size in zip(itertools.accumulate(pieces), pieces, strict=True):
        array = (lib.llama_token * size)(*tokens[stop - size : stop])
        assert lib.llama_decode(_context, lib.llama_batch_get_one(array, size)) == 0
    count = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(_model))
    return _logprobs(np.ctypeslib.as_array(lib.llama_get_logits_ith(_context, -1), shape=(count,)))


def _logprobs(logits: NDArray[np.float32]) -> Logprobs:
    shifted = logits.astype(np.float64) - float(logits.max())
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def _plain_vector(tokens: list[int], pooling: int) -> Vector:
    from llama_cpp import llama_cpp as lib

    parameters = lib.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = CONTEXT
    parameters.n_threads = parameters.n_threads_batch = THREADS
    parameters.embeddings, parameters.pooling_type = True, pooling
    context = lib.llama_init_from_model(_model, parameters)
    run = lib.llama_encode if lib.llama_model_has_encoder(_model) else lib.llama_decode
    array = (lib.llama_token * len(tokens))(*tokens)
    assert run(context, lib.llama_batch_get_one(array, len(tokens))) == 0
    width = lib.llama_model_n_embd_out(_model)
    vector = np.ctypeslib.as_array(lib.llama_get_embeddings_seq(context, 0), shape=(width,)).copy()
    lib.llama_free(context)
    return np.asarray(vector / np.linalg.norm(vector))


# ---- ours ------------------------------------------------------------------------------------------


def _open_ours(path: Path, folder: Path, sequences: int, kv_type: KvType) -> None:
    global _world  # noqa: PLW0603  # the process is for this alone
    if "_world" in globals():
        _world.close()
    else:
        _world = _World(folder)
    _world.open(path, sequences, kv_type)


class _World:
    """What is put together for one open model."""

    def __init__(self, folder: Path) -> None:
        guard_buffers()
        self._real = RealEngine(folder, threads=THREADS)
        self.flexmem = self._real.flexmem

    def open(self, path: Path, sequences: int, kv_type: KvType) -> None:
        from flexserve.protocol.statuses import KvStatus
        from flexserve.trusted.kv.conversations import Conversations
        from flexserve.trusted.kv.sealed import SealedKv

        real = self._real
        self._model, self.context = real.open(path, CONTEXT, sequences, kv_type=kv_type)
        name, fingerprint = self._model.name, real.engine.fingerprint
        sealed = SealedKv(
            *(real.store, name, fingerprint, self.flexmem),
            form=kv_type,
            quota=1 << 30,
            counters=KvStatus(),
        )
        self.conversations = Conversations(self.context, sealed, threading.RLock())

    def close(self) -> None:
        self._real.residency.retire(self._model.weights)
        self.context.close()
        self._model.close()


_world: _World
_model: int
_context: int


def _ask(tokens: list[int], answer: list[int]) -> list[Said]:
    from flexserve.trusted.engine.context import Span

    context, conversations = _world.context, _world.conversations
    context.prepare()
    claimed = conversations.claim("me", tokens, tokens[:-1])
    assert claimed is not None
    slot, kept = claimed
    said: list[Said] = []
    for start, stop in [
        (kept, len(tokens)),
        *((len(tokens) + i, len(tokens) + i + 1) for i in range(len(answer))),
    ]:
        piece = [*tokens, *answer][start:stop]
        context.decode([Span(slot.number, start, piece)])
        slot.tokens += piece
        slot.sealed = False
        said.append(Said(kept, _logprobs(context.logits(0))))
    conversations.release(slot)
    return said


def _ask_together(first: list[int], second: list[int], piece: int, steps: int) -> tuple[Logprobs, Logprobs]:
    from flexserve.trusted.engine.context import Span

    context = _world.context
    context.prepare()
    prompts = [*enumerate((first, second))]
    for sequence, _ in prompts:
        context.take(sequence, 0)
    begun = [Span(sequence, 0, tokens[:piece]) for sequence, tokens in prompts]
    for spans in [[span] for span in begun] if context.prompts_apart else [begun]:
        context.decode(spans)
    for sequence, tokens in prompts:
        context.decode([Span(sequence, piece, tokens[piece:-steps])])
    for step in range(-steps, 0):
        context.decode([Span(i, len(tokens) + step, [tokens[step]]) for i, tokens in prompts])
    found = _logprobs(context.logits(0)), _logprobs(context.logits(1))
    context.release([0, 1])
    return found


def _vectors(texts: list[list[int]]) -> list[Vector]:
    from flexserve.trusted.engine.embedder import Embedder

    embedder = Embedder(_world.context)
    try:
        return [embedder.embed(tokens) for tokens in texts]
    finally:
        embedder.close()


def _tokens(text: str) -> list[int]:
    from flexserve.trusted.engine.vocabulary import Vocabulary

    return Vocabulary(_world.context.model).encode(text, special=False)


def _recall_all() -> None:
    for slot in _world.conversations.unsealed():
        _world.conversations.seal_idle(slot)
    _world.conversations.give_up(1 << 40, keep_grants=False)
    _world.flexmem.check()
