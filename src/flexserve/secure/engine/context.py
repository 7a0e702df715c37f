"""A llama.cpp context over a model: KV cache and scratch in Flex-Mem, tokens in, logits out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
from llama_cpp import llama_cpp as lib
from numpy.typing import NDArray

from flexserve.errors import CallerError, CancelledError, InternalError
from flexserve.platforms.ports import Arena
from flexserve.secure.engine import abi
from flexserve.secure.engine.graph import EngineGraph
from flexserve.secure.engine.model import Model
from flexserve.secure.job import RestoreStats
from flexserve.secure.residency import Residency

_BATCH = 512  # tokens of a prompt that one graph takes in
_SLICE_SECONDS = 0.05  # a recall waits for a slice at most; shorter ones cost over a percent of speed
_MIN_STRIDE = 16  # nodes
_USAGE_COMPUTE = 2  # GGML_BACKEND_BUFFER_USAGE_COMPUTE


@dataclasses.dataclass(frozen=True, slots=True)
class _ContextBuffer:
    address: int  # of the ggml buffer
    arena: Arena

    @property
    def is_scratch(self) -> bool:
        return bool(abi.Buffer.from_address(self.address).usage == _USAGE_COMPUTE)


class Context:
    """One sequence of tokens on a model. Belongs to the engine thread, but for `cancel`.

    KV cache and scratch have memory only between `prepare` and `release`.
    """

    lazy = False  # the hooks write its tensors (a BufferOwner)

    def __init__(self, model: Model, residency: Residency, context: int) -> None:
        """Make a context of at most `context` tokens. Commits nothing.

        Raises InternalError when llama.cpp cannot.
        """
        self.model = model
        self.stats = RestoreStats()
        self._engine, self._residency = model.engine, residency
        self._buffers: list[_ContextBuffer] = []
        self._cancelled = False
        self._tokens_in_graph = 0
        self._pace: dict[int, float] = {}  # seconds per node, by size class of the batch
        self.size = min(context, model.trained_context)
        self._vocabulary_size = lib.llama_vocab_n_tokens(model.vocabulary)
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = self.size
        parameters.n_batch = parameters.n_ubatch = min(_BATCH, self.size)
        parameters.n_seq_max = 1
        parameters.n_outputs_max = 1  # logits of the last token only: the rest would be scratch
        parameters.n_threads = parameters.n_threads_batch = self._engine.threads
        parameters.no_perf = True
        self._specialise(parameters)
        with self._engine.hooks.owner(self):
            self.address = lib.llama_init_from_model(model.address, parameters) or 0
        if not self.address:
            raise InternalError("llama.cpp could not make a context.", hint="Try a smaller --context.")
        # llama.cpp's own making of the context needed memory; requests will ask for theirs.
        size = self.release_kv() + self.release_scratch() + self._engine.release_work()
        self._engine.flexmem.report_returned(size)

    def _specialise(self, parameters: lib.llama_context_params) -> None:
        """Change what llama.cpp is asked for. For kinds of contexts that generate no text."""

    def close(self) -> None:
        """Free the context. Always safe."""
        if self.address:
            with self._engine.hooks.owner(self):
                lib.llama_free(self.address)
            self.address = 0

    # ---- memory --------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Put memory behind KV cache and scratch, and forget all tokens. Raises GrantRefusedError.

        Pages come at first touch; what a short prompt does not reach costs nothing.
        """
        self._cancelled = False
        self.stats = RestoreStats()
        lib.llama_memory_clear(lib.llama_get_memory(self.address), False)
        for buffer in self._buffers:
            self._engine.flexmem.commit_missing(buffer.arena)

    def release_kv(self) -> int:
        """Give the KV cache back; return the bytes. Not while decoding."""
        return sum(self._engine.flexmem.release_all(b.arena) for b in self._buffers if not b.is_scratch)

    def release_scratch(self) -> int:
        """Give scratch back; return the bytes. Not while decoding."""
        return sum(self._engine.flexmem.release_all(b.arena) for b in self._buffers if b.is_scratch)

    def committed(self) -> tuple[int, int]:
        """Return the committed bytes of (KV cache, scratch)."""
        kv = scratch = 0
        for buffer in self._buffers:
            size = self._engine.flexmem.committed(buffer.arena)
            if buffer.is_scratch:
                scratch += size
            else:
                kv += size
        return kv, scratch

    # ---- tokens --------------------------------------------------------------------------------

    def decode(self, tokens: Sequence[int]) -> None:
        """Append `tokens`; the logits after the last are there then.

        Raises CallerError when the context is full, CancelledError after `cancel`, and what
        restoring weights raises.
        """
        for start in range(0, len(tokens), _BATCH):
            batch = tokens[start : start + _BATCH]
            array = (lib.llama_token * len(batch))(*batch)
            self._tokens_in_graph = len(batch)
            with self._engine.hooks.owner(self):
                status = lib.llama_decode(self.address, lib.llama_batch_get_one(array, len(batch)))
            self._check(status)

    def logits(self) -> NDArray[np.float32]:
        """Return the logits after the last token, shape (vocabulary,): a view until the next decode."""
        logits = lib.llama_get_logits_ith(self.address, -1)
        return np.ctypeslib.as_array(logits, shape=(self._vocabulary_size,))

    def restore(self) -> RestoreStats:
        """Bring all weights into memory; return what it cost. Raises what restoring raises."""
        self._residency.restore(self.model.weights, self.stats)
        return self.stats

    def cancel(self) -> None:
        """Make the decode under way, or the next one, raise CancelledError. From any thread."""
        self._cancelled = True
        self._residency.cancel()

    def _check(self, status: int) -> None:
        if status == 0:
            return
        if status == 1:
            raise CallerError(
                f"The context of {self.size} tokens is full.",
                hint="Shorten the prompt.",
                code="context_length_exceeded",
            )
        raise InternalError(f"llama.cpp could not decode (status {status}).")

    # ---- what the hooks call -------------------------------------------------------------------

    def adopt(self, _kind: str, address: int, arena: Arena, _size: int) -> None:
        """Note a KV, scratch or output buffer; while a request runs it needs memory at once."""
        self._buffers = [b for b in self._buffers if b.address != address]
        self._buffers.append(_ContextBuffer(address, arena))
        self._engine.flexmem.commit_missing(arena)

    def drop(self, address: int) -> None:
        """Forget a buffer that llama.cpp freed."""
        self._buffers = [b for b in self._buffers if b.address != address]

    def place(self, _tensor: int, _size: int) -> None:
        """Contexts have no weights."""
        raise InternalError("llama.cpp loads a weight into a context.")

    def compute(self, graph: int) -> int:
        """Run a graph through the residency barrier."""
        self._engine.prepare(abi.Graph.from_address(graph))
        run = EngineGraph(graph, self.model.map, 0, self._compute_slice)
        run.stride = self._stride(run.nodes)
        self._residency.compute(self.model.weights, run, self.stats)
        return abi.STATUS_SUCCESS

    def _stride(self, nodes: int) -> int:
        """Return how many nodes make a slice, by how long such graphs took lately."""
        pace = self._pace.get(self._tokens_in_graph.bit_length())
        if pace is None:
            return _MIN_STRIDE if self._tokens_in_graph > 1 else nodes
        return max(_MIN_STRIDE, int(_SLICE_SECONDS / pace))

    def _compute_slice(self, graph: abi.Graph) -> None:
        if self._cancelled:
            raise CancelledError("The request was cancelled.")
        began = time.perf_counter()
        self._engine.compute(graph)
        pace, size = (time.perf_counter() - began) / graph.n_nodes, self._tokens_in_graph.bit_length()
        self._pace[size] = (self._pace.get(size, pace) + pace) / 2
