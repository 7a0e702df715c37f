"""A llama.cpp context over a model: KV cache and scratch in Flex-Mem, tokens in, logits out."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from flexserve.errors import (
    CancelledError,
    FlexServeError,
    GrantRefusedError,
    InternalError,
)
from flexserve.platforms.ports import Arena
from flexserve.policy.slice_length import SliceLength
from flexserve.protocol.model_options import KvType
from flexserve.trusted.engine import abi
from flexserve.trusted.engine.graph import EngineGraph
from flexserve.trusted.engine.kv import KvCache
from flexserve.trusted.engine.library import lib
from flexserve.trusted.engine.model import Model
from flexserve.trusted.engine.tensors import floats_at
from flexserve.trusted.limits import no_kv
from flexserve.trusted.memory.flexmem import REFUSED_HINT
from flexserve.trusted.weights.job import RestoreStats
from flexserve.trusted.weights.residency import Residency
from flexserve.units import format_size

BATCH = 512  # tokens that one graph takes in
OUTPUTS = 16  # logits that one graph makes: those of a token take up to a megabyte
_WITHOUT_CACHE = frozenset({"llama-embed"})  # llama.cpp makes a cache for it, which its graphs do not use
_KV_TYPES: dict[KvType, int] = {
    "f16": lib.GGML_TYPE_F16,
    "q8_0": lib.GGML_TYPE_Q8_0,
    "q4_0": lib.GGML_TYPE_Q4_0,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one sequence: `tokens` come at positions `start`, `start` + 1, …

    `scored`: the logits after each of them are wanted, not only those after the last one.
    """

    sequence: int
    start: int
    tokens: Sequence[int]
    scored: bool = False


class Context:
    """Several sequences of tokens on a model. Belongs to the engine thread, but for `cancel` and
    `release`.

    Scratch has memory only between `prepare` and `release_scratch`, the KV of a sequence only
    between `take` and `release`.
    """

    lazy = hollow = False  # the hooks write its tensors (a BufferOwner)

    def __init__(
        self,
        model: Model,
        residency: Residency,
        context: int,
        sequences: int,
        *,
        kv_type: KvType = "f16",
    ) -> None:
        """Make a context of at most `context` tokens for each of `sequences`. Commits nothing.

        Raises CallerError when llama.cpp cannot keep this model's KV as `kv_type`, InternalError when it can
        make no context at all.
        """
        self.model = model
        self._engine, self._residency = model.engine, residency
        self._arenas: dict[int, Arena] = {}  # by address of the ggml buffer
        self._cancelled = False
        self._stats = RestoreStats()
        self._tokens_in_graph = 0
        self._slices = SliceLength()
        self.size = min(context, model.trained_context)
        self.sequences, self.kv_type = sequences, kv_type
        self._vocabulary_size = lib.llama_vocab_n_tokens(model.vocabulary)
        self.kv = KvCache(self._engine.flexmem, sequences)
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = self.size * sequences
        parameters.n_batch = parameters.n_ubatch = max(min(BATCH, self.size), sequences)
        parameters.n_seq_max = sequences
        self.outputs = parameters.n_outputs_max = max(sequences, min(OUTPUTS, self.size))
        # A quantised V needs flash attention, which llama.cpp chooses by itself where a graph can have it.
        parameters.type_k = parameters.type_v = _KV_TYPES[kv_type]
        parameters.kv_unified = False  # a stream for each sequence: the same logits as if it were alone
        parameters.n_threads = parameters.n_threads_batch = self._engine.threads
        parameters.no_perf = True
        self._specialise(parameters)
        self.watches = True
        with self._engine.hooks.owner(self):
            self.address = lib.llama_init_from_model(model.address, parameters) or 0
        self.watches = False
        if not self.address:
            raise _no_context(kv_type)
        self._memory = lib.llama_get_memory(self.address)
        self._run = lib.llama_decode
        self.encodes = bool(lib.llama_model_has_encoder(model.address))  # a text has to go through it first
        remembers = self._memory and not self.encodes and model.header.architecture not in _WITHOUT_CACHE
        # A text has to go through it at once: tokens see those behind them, or those of earlier graphs not.
        self.whole_texts = not (remembers and lib.llama_get_causal_attn(self.address))
        self._window = int(lib.llama_model_n_swa(model.address))
        self._recurrent = lib.llama_model_is_recurrent(model.address) or lib.llama_model_is_hybrid(
            model.address
        )
        # llama.cpp's plamo2 mixes the states of sequences that have several tokens each in a graph.
        self.prompts_apart = self._recurrent
        self._batch = lib.llama_batch_init(parameters.n_batch, 0, 1)
        self._reserving = model.change(self.address)
        if self._reserving:
            self._reserve()
        # llama.cpp's own making of the context may have needed memory; requests will ask for theirs.
        size = self.release(range(sequences)) + self.release_scratch() + self._engine.release_work()
        self._engine.flexmem.report_returned(size)

    def _specialise(self, parameters: lib.llama_context_params) -> None:
        """Change what llama.cpp is asked for. For kinds of contexts that generate no text."""

    def _reserve(self) -> None:
        """Have llama.cpp lay out its scratch for graphs with an adapter, as it does at the next batch.

        Where it gets no memory for that, it ends the process. So memory is granted first, and the batch is
        one that is not computed.
        """
        flexmem = self._engine.flexmem
        size = 2 * sum(arena.size for arena in self._scratch())  # as it is now, and as it will be
        try:
            had = flexmem.grant(size, minimum=size)
            if had < size:
                raise GrantRefusedError(
                    f"An adapter takes {format_size(size)} of memory for a moment, which were not granted.",
                    hint=REFUSED_HINT,
                    missing=size - had,
                )
            self.prepare()
            self._fill([Span(0, 0, [0])])
            with self._engine.hooks.owner(self):
                self._run(self.address, self._batch)
        except BaseException:
            self.close()
            raise
        finally:
            self._reserving = False

    def close(self) -> None:
        """Free the context. Always safe."""
        if self.address:
            lib.llama_batch_free(self._batch)
            with self._engine.hooks.owner(self):
                lib.llama_free(self.address)
            self.address = 0

    # ---- memory --------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Put memory behind scratch and outputs. Raises GrantRefusedError."""
        for arena in self._scratch():
            self._engine.flexmem.commit_missing(arena)

    def take(self, sequence: int, keep: int) -> int:
        """Put memory behind the KV of `sequence` and forget its tokens from position `keep` on.

        Returns how many it still has: 0 where the cache cannot go back that far. Pages come at first
        touch; what a short prompt does not reach costs nothing. Raises GrantRefusedError.
        """
        self.kv.take(sequence)
        if self.usable(sequence, keep) and self._cut(sequence, keep):
            return keep
        lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return 0

    def usable(self, sequence: int, keep: int) -> int:
        """Return `keep` if the cache of `sequence` can go on from that position, else 0.

        It can from its end. Further back it can where it still has all that the token at `keep` looks
        at, which llama.cpp's own `seq_rm` does not ask: of layers with a window it may hold the last
        window only, and of recurrent layers there is the latest state and no other.
        """
        first, last = self._held(sequence)
        if keep == last + 1:
            return keep
        needed = max(0, keep - self._window) if self._window else 0
        return keep if keep <= last and first <= needed else 0

    @property
    def goes_back(self) -> bool:
        """Whether it can forget the last tokens of a sequence, whatever it has read."""
        return not (self.whole_texts or self._window or self._recurrent)

    def usable_saved(self, count: int, keep: int) -> int:
        """Return `keep` if what `save` writes of `count` tokens can be used from that position on, else 0.

        `save` leaves out what no later token looks at.
        """
        goes_back = not self._recurrent and (not self._window or count <= self._window)
        return keep if keep == count or goes_back else 0

    def _cut(self, sequence: int, keep: int) -> bool:
        """Forget the tokens from `keep` on; return whether the cache then ends there."""
        done = lib.llama_memory_seq_rm(self._memory, sequence, keep, -1)
        return bool(done) and self._held(sequence)[1] == keep - 1

    def _held(self, sequence: int) -> tuple[int, int]:
        """Return the positions (first, last) between which all layers have all of `sequence`; -1: none."""
        first = int(lib.llama_memory_seq_pos_min(self._memory, sequence))
        return first, int(lib.llama_memory_seq_pos_max(self._memory, sequence))

    def release(self, sequences: Collection[int], *, keep_grants: bool = False) -> int:
        """Give the KV of `sequences` up; return the bytes. Any thread, while no graph reads them.

        Their next `take` must keep nothing.
        """
        return self.kv.release(sequences, keep_grants=keep_grants)

    def release_scratch(self, *, keep_grants: bool = False) -> int:
        """Give scratch up; return the bytes. Not while decoding."""
        flexmem = self._engine.flexmem
        give_up = flexmem.recycle_all if keep_grants else flexmem.release_all
        return sum(give_up(arena) for arena in self._scratch())

    def scratch_committed(self) -> int:
        """Return the committed bytes of scratch and outputs."""
        return sum(self._engine.flexmem.committed(arena) for arena in self._scratch())

    def _scratch(self) -> list[Arena]:
        return [arena for arena in list(self._arenas.values()) if not self.kv.has(arena)]

    # ---- tokens --------------------------------------------------------------------------------

    def decode(self, spans: Sequence[Span]) -> RestoreStats:
        """Take in `spans`, of different sequences and BATCH tokens at most, in one go.

        The logits after each span are `logits(i)` then, and those after each token of a scored one
        `scores(i, …)`: of `outputs` tokens in all at most. Returns what bringing weights back cost. Raises
        CancelledError after `cancel`, and what restoring weights raises: the sequences are to be taken anew
        then.
        """
        self._stats, self._cancelled = RestoreStats(), False
        self._fill(spans)
        with self._engine.hooks.owner(self):
            status = self._run(self.address, self._batch)
        if status != 0:
            raise InternalError(f"llama.cpp could not decode (status {status}).")
        return self._stats

    def _fill(self, spans: Sequence[Span]) -> None:
        """Write the spans into the batch that llama.cpp reads."""
        batch, at = self._batch, 0
        self._rows: list[int] = []  # by span: of its last token
        for span in spans:
            for position, token in enumerate(span.tokens, span.start):
                batch.token[at], batch.pos[at], batch.logits[at] = token, position, span.scored
                batch.n_seq_id[at] = 1
                batch.seq_id[at][0] = span.sequence
                at += 1
            batch.logits[at - 1] = True
            self._rows.append(at - 1)
        batch.n_tokens = self._tokens_in_graph = at

    def logits(self, span: int) -> NDArray[np.float32]:
        """Return the logits after a span, shape (vocabulary,): a view until the next decode."""
        return self._logits(self._rows[span])

    def scores(self, span: int, count: int) -> NDArray[np.float32]:
        """Return the logits after each of the `count` tokens of a scored span, shape (count, vocabulary)."""
        last = self._rows[span]
        return np.stack([self._logits(row) for row in range(last - count + 1, last + 1)])

    def _logits(self, row: int) -> NDArray[np.float32]:
        logits = lib.llama_get_logits_ith(self.address, row)
        return floats_at(ctypes.addressof(logits.contents), self._vocabulary_size)

    def restore(self) -> RestoreStats:
        """Bring all weights into memory; return what it cost. Raises what restoring raises."""
        stats = RestoreStats()
        self._residency.restore(self.model.weights, stats)
        return stats

    def cancel(self) -> None:
        """Make the decode under way raise CancelledError. From any thread."""
        self._cancelled = True
        self._residency.cancel()

    # ---- the state of a sequence -----------------------------------------------------------------

    def state_size(self, sequence: int) -> int:
        """Return the bytes that `save` will write for `sequence`."""
        return int(lib.llama_state_seq_get_size(self.address, sequence))

    def save(self, sequence: int, target: memoryview) -> int:
        """Write the KV of `sequence`, in llama.cpp's own form; return the bytes written (0: failed)."""
        buffer = (ctypes.c_uint8 * len(target)).from_buffer(target)
        return int(lib.llama_state_seq_get_data(self.address, buffer, len(target), sequence))

    def load(self, sequence: int, source: memoryview) -> bool:
        """Replace the KV of `sequence`, which was taken, by what `save` wrote. False: it did not fit."""
        buffer = (ctypes.c_uint8 * len(source)).from_buffer(source)
        taken = lib.llama_state_seq_set_data(self.address, buffer, len(source), sequence)
        return int(taken) == len(source)

    # ---- what the hooks call -------------------------------------------------------------------

    def adopt(self, _kind: str, address: int, arena: Arena, _size: int) -> None:
        """Note a KV, scratch or output buffer; while a request runs it needs memory at once."""
        self._arenas[address] = arena
        if not self.watches:
            self._engine.flexmem.commit_missing(arena)

    def settle(self, buffer: int, tensor: int) -> None:
        """Note a tensor that has its place before any graph runs: it belongs to the KV cache."""
        struct = abi.Tensor.from_address(tensor)
        if not struct.view_src:
            size = int(struct.nb[3]) * int(struct.ne[3])
            self.kv.add(self._arenas[buffer], int(struct.data), size, list(struct.ne), int(struct.nb[2]))

    def drop(self, address: int) -> None:
        """Forget a buffer that llama.cpp freed."""
        self._arenas.pop(address, None)

    def place(self, _tensor: int, _size: int) -> None:
        """Contexts have no weights."""
        raise InternalError("llama.cpp loads a weight into a context.")

    def compute(self, graph: int) -> int:
        """Run a graph through the residency barrier."""
        if self._reserving:
            return abi.STATUS_ABORTED
        view, resting = abi.Graph.from_address(graph), self._residency.resting
        offload = self._engine.prepare(view, self._tokens_in_graph, resting)
        run = EngineGraph(graph, self.model.map, 0, self._compute_slice, timed=self._took, offload=offload)
        run.stride = self._slices.nodes(self._tokens_in_graph, run.nodes)
        try:
            self._residency.compute(self.model.weights, run, self._stats)
        finally:
            self._stats.npu_products += offload.products if offload is not None else 0
        return abi.STATUS_SUCCESS

    def _compute_slice(self, graph: abi.Graph) -> None:
        if self._cancelled:
            raise CancelledError("The request was cancelled.")
        self._engine.compute(graph)
        self._engine.heartbeat.beat()

    def _took(self, nodes: int, seconds: float) -> None:
        """Record how long a slice took."""
        self._slices.took(self._tokens_in_graph, nodes, seconds)


def _no_context(kv_type: KvType) -> FlexServeError:
    if kv_type == "f16":
        return InternalError("llama.cpp could not make a context.", hint="Give the model a shorter context.")
    return no_kv(kv_type)
