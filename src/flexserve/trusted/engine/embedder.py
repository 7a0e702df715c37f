"""Texts to vectors: a context that pools what a model makes of each token, instead of generating."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flexserve.errors import CallerError, InternalError
from flexserve.trusted.engine.context import BATCH, Context, Span
from flexserve.trusted.engine.library import lib
from flexserve.trusted.engine.tensors import floats_at
from flexserve.trusted.weights.job import RestoreStats

# Tokens that one graph takes in. llama.cpp makes, and has room for, the logits of each of them, though
# only vectors are wanted: with large vocabularies that is most of the memory.
_BATCH = 128
_POOLINGS = (lib.LLAMA_POOLING_TYPE_MEAN, lib.LLAMA_POOLING_TYPE_CLS, lib.LLAMA_POOLING_TYPE_LAST)


class Embedder(Context):
    """A context that lives for one request; its memory is in Flex-Mem as any other context's.

    It pools as the model says, or takes the mean where it says nothing. With `ranks` it gives a number for
    each text instead, by the head of a model that has one.
    """

    def __init__(self, beside: Context, *, ranks: bool = False) -> None:
        """Make a context for texts of the length that `beside`, over the same model, takes. Commits nothing.

        Raises CallerError for a model that makes no vectors, or does not rank; InternalError when llama.cpp
        cannot.
        """
        pooling = int(lib.llama_pooling_type(beside.address))
        self._pooling = pooling if pooling in _POOLINGS else lib.LLAMA_POOLING_TYPE_MEAN
        self.ranks = pooling == lib.LLAMA_POOLING_TYPE_RANK
        if self.ranks != ranks:
            raise _unsupported("This model ranks texts") if self.ranks else _no_ranks()
        if self.ranks:
            self._pooling = pooling
        if beside.encodes and lib.llama_model_has_decoder(beside.model.address):
            raise _unsupported("This model turns texts into texts")  # llama.cpp pools none of those
        whole = beside.whole_texts or self.ranks  # a rank is read off one graph's last states
        self._step = min(BATCH, beside.size) if whole else _BATCH
        size = self._step if whole else beside.size
        super().__init__(beside.model, beside._residency, size, sequences=1, kv_type=beside.kv_type)
        if self.encodes:
            self._run = lib.llama_encode
        self._width = 1 if ranks else int(lib.llama_model_n_embd_out(self.model.address))
        self.stats = RestoreStats()  # of all texts

    def _specialise(self, parameters: lib.llama_context_params) -> None:
        parameters.embeddings = True
        parameters.pooling_type = self._pooling
        parameters.n_batch = parameters.n_ubatch = parameters.n_outputs_max = min(self._step, self.size)

    def embed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return the vector of a text, of length 1, shape (width,); or its rank, shape (1,).

        Raises CallerError for an empty or too long text, GrantRefusedError, CancelledError after
        `cancel`, and what restoring weights raises.
        """
        if not 0 < len(tokens) <= self.size:
            raise CallerError(
                f"A text of {len(tokens)} tokens is too large: this model takes {self.size} here."
                if tokens
                else "A text has no tokens.",
                hint="Split long texts, leave empty ones out, or give the model a longer context.",
                code="context_length_exceeded",
            )
        self.prepare()
        self.take(0, keep=0)
        step = self._step
        parts = [self._pooled(at, tokens[at : at + step]) for at in range(0, len(tokens), step)]
        vector = parts[0] if self.ranks else self._combined(parts, len(tokens))
        if self.ranks:
            if not np.isfinite(vector[0]):
                raise InternalError("The model's rank of a text is no number.")
            return vector.astype(np.float32)
        length = float(np.linalg.norm(vector))
        if not (np.isfinite(length) and length > 0):
            raise InternalError("The model made a vector that has no direction.")
        return (vector / length).astype(np.float32)

    def _pooled(self, start: int, tokens: Sequence[int]) -> NDArray[np.float64]:
        """Take in the next tokens of a text; return what llama.cpp pools of them."""
        self.stats.include(self.decode([Span(0, start, tokens)]))
        vector = lib.llama_get_embeddings_seq(self.address, 0)
        if not vector:
            raise InternalError("llama.cpp pooled nothing.")
        return floats_at(ctypes.addressof(vector.contents), self._width).astype(np.float64)

    def _combined(self, parts: Sequence[NDArray[np.float64]], count: int) -> NDArray[np.float64]:
        """Return the pooling of a text of `count` tokens, of which `parts` are those of its batches."""
        if self._pooling == lib.LLAMA_POOLING_TYPE_CLS:
            return parts[0]
        if self._pooling == lib.LLAMA_POOLING_TYPE_LAST:
            return parts[-1]
        sizes = [min(self._step, count - at) for at in range(0, count, self._step)]
        return np.average(parts, axis=0, weights=sizes)


def _no_ranks() -> CallerError:
    return CallerError(
        "This model does not rank texts.",
        hint="Use a reranker; or ask POST /v1/embeddings for vectors, and compare them.",
        code="rerank_unsupported",
    )


def _unsupported(what: str) -> CallerError:
    return CallerError(
        f"{what}; it makes no vectors.", hint="Use an embedding model.", code="embeddings_unsupported"
    )
