"""Texts to vectors: a context that pools what a model makes of each token, instead of generating."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from llama_cpp import llama_cpp as lib
from numpy.typing import NDArray

from flexserve.errors import CallerError, InternalError
from flexserve.secure.engine.context import BATCH, Context, Span
from flexserve.secure.engine.model import Model
from flexserve.secure.job import RestoreStats
from flexserve.secure.residency import Residency

# Tokens that one graph takes in. llama.cpp makes, and has room for, the logits of each of them, though
# only vectors are wanted: with large vocabularies that is most of the memory.
_BATCH = 128
_POOLINGS = (lib.LLAMA_POOLING_TYPE_MEAN, lib.LLAMA_POOLING_TYPE_CLS, lib.LLAMA_POOLING_TYPE_LAST)


class Embedder(Context):
    """A context that lives for one request; its memory is in Flex-Mem as any other context's.

    It pools as the model's own metadata says, or takes the mean where it says nothing.
    """

    def __init__(self, model: Model, residency: Residency, context: int) -> None:
        """Make a context for texts of at most `context` tokens. Commits nothing.

        Raises CallerError for a model that ranks texts, InternalError when llama.cpp cannot.
        """
        metadata, architecture = model.header.metadata, model.header.architecture
        pooling = metadata.get(f"{architecture}.pooling_type")
        self._pooling = pooling if pooling in _POOLINGS else lib.LLAMA_POOLING_TYPE_MEAN
        if pooling == lib.LLAMA_POOLING_TYPE_RANK:
            raise CallerError(
                "This model ranks texts; it makes no vectors.",
                hint="Use an embedding model.",
                code="embeddings_unsupported",
            )
        # A model whose tokens see those behind them has to see all of a text at once.
        self._whole = metadata.get(f"{architecture}.attention.causal") is False
        self._step = min(BATCH, context) if self._whole else _BATCH
        super().__init__(model, residency, self._step if self._whole else context, sequences=1)
        self.stats = RestoreStats()  # of all texts

    @classmethod
    def beside(cls, context: Context) -> Self:
        """Return an embedder over the model of `context`, for texts of the same length."""
        return cls(context.model, context._residency, context.size)

    def _specialise(self, parameters: lib.llama_context_params) -> None:
        parameters.embeddings = True
        parameters.pooling_type = self._pooling
        parameters.n_batch = parameters.n_ubatch = parameters.n_outputs_max = min(self._step, self.size)

    def embed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return the vector of a text, of length 1, shape (width,).

        Raises CallerError for an empty or too long text, GrantRefusedError, CancelledError after
        `cancel`, and what restoring weights raises.
        """
        if not 0 < len(tokens) <= self.size:
            raise CallerError(
                f"A text has {len(tokens)} tokens; this model takes 1 to {self.size} here.",
                hint="Split long texts, leave empty ones out, or serve with a larger --context.",
                code="context_length_exceeded",
            )
        self.prepare()
        self.take(0, keep=0)
        step = self._step
        parts = [self._pooled(at, tokens[at : at + step]) for at in range(0, len(tokens), step)]
        vector = self._combined(parts, len(tokens))
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
        width = int(lib.llama_model_n_embd(self.model.address))
        return np.ctypeslib.as_array(vector, shape=(width,)).astype(np.float64)

    def _combined(self, parts: Sequence[NDArray[np.float64]], count: int) -> NDArray[np.float64]:
        """Return the pooling of a text of `count` tokens, of which `parts` are those of its batches."""
        if self._pooling == lib.LLAMA_POOLING_TYPE_CLS:
            return parts[0]
        if self._pooling == lib.LLAMA_POOLING_TYPE_LAST:
            return parts[-1]
        sizes = [min(self._step, count - at) for at in range(0, count, self._step)]
        return np.average(parts, axis=0, weights=sizes)
