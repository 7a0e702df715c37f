"""Choosing the next token: llama.cpp's own sampler chain, and a grammar beside it where one is asked for."""

from __future__ import annotations

import ctypes
import secrets

import numpy as np
from llama_cpp import llama_cpp as lib
from numpy.typing import NDArray

from flexserve.errors import CallerError
from flexserve.secure.engine.context import Context
from flexserve.world.messages import Sampling

_SEEDS = 1 << 32  # llama.cpp's generator takes 32 bits
_LIKELY = 256  # tokens that are looked at before the whole vocabulary is
_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Sampler:
    """A sampler chain for one request: top-p, temperature, draw; or greedy at temperature 0.

    `grammar` (GBNF; see core.grammar) confines the text to what it admits. Raises CallerError for
    one that llama.cpp does not take.
    """

    def __init__(self, sampling: Sampling, vocabulary: int, grammar: str | None = None) -> None:
        self._grammar = TextGrammar(vocabulary, grammar) if grammar is not None else None
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if sampling.temperature == 0:
            lib.llama_sampler_chain_add(self._chain, lib.llama_sampler_init_greedy())
            return
        seed = secrets.randbelow(_SEEDS) if sampling.seed is None else sampling.seed % _SEEDS
        lib.llama_sampler_chain_add(self._chain, lib.llama_sampler_init_top_p(sampling.top_p, 1))
        lib.llama_sampler_chain_add(self._chain, lib.llama_sampler_init_temp(sampling.temperature))
        lib.llama_sampler_chain_add(self._chain, lib.llama_sampler_init_dist(seed))

    def choose(self, context: Context, index: int = -1) -> int:
        """Return the next token, given the logits of output `index` of the last decode.

        Raises CallerError when the grammar leaves the vocabulary nothing to say.
        """
        token = int(lib.llama_sampler_sample(self._chain, context.address, index))
        if self._grammar is None:
            return token
        # Most tokens that a model prefers fit, and one is checked faster than the whole vocabulary.
        if not self._grammar.admits(token):
            token = self._constrained(self._grammar, context, index)
        self._grammar.accept(token)
        return token

    def close(self) -> None:
        """Free the chain. Always safe."""
        if self._chain:
            lib.llama_sampler_free(self._chain)
            self._chain = None
        if self._grammar is not None:
            self._grammar.close()

    def _constrained(self, grammar: TextGrammar, context: Context, index: int) -> int:
        logits = lib.llama_get_logits_ith(context.address, index)
        candidates = grammar.best(np.ctypeslib.as_array(logits, shape=(grammar.tokens,)))
        lib.llama_sampler_apply(self._chain, ctypes.byref(candidates.array))
        return candidates.selected


class TextGrammar:
    """llama.cpp's reading of a grammar, at some point of a text. Mutated by `accept` only.

    `vocabulary` is the address of a `llama_vocab`, which has to outlive it. Raises CallerError for
    rules that begin with themselves.
    """

    def __init__(self, vocabulary: int, text: str) -> None:
        self._sampler = lib.llama_sampler_init_grammar(vocabulary, text.encode(), b"root")
        self.tokens = int(lib.llama_vocab_n_tokens(vocabulary))
        if not self._sampler:
            raise CallerError(
                "The JSON schema cannot be followed: it refers to itself without end.",
                hint="Simplify the schema, or leave it out.",
                code="schema_unsupported",
            )

    def admits(self, token: int) -> bool:
        """Return whether `token` may come next; at a token that ends a generation: whether all is said."""
        return self._confine(np.array([token]), np.zeros(1, np.float32)).any

    def best(self, logits: NDArray[np.float32]) -> Candidates:
        """Return tokens that may come next (at -∞ those that may not): the likeliest, if any of them may.

        `logits` are those of the whole vocabulary, which takes llama.cpp up to seconds to look
        through. Raises CallerError when none of it may come next.
        """
        if len(logits) > _LIKELY:
            likely = np.sort(np.argpartition(logits, -_LIKELY)[-_LIKELY:])
            candidates = self._confine(likely, logits[likely])
            if candidates.any:
                return candidates
        candidates = self._confine(np.arange(len(logits)), logits)
        if not candidates.any:
            raise CallerError(
                "The model's vocabulary cannot write what the schema asks for.",
                hint="Simplify the schema, or use another model.",
                code="schema_unsatisfiable",
            )
        return candidates

    def _confine(self, tokens: NDArray[np.int_], logits: NDArray[np.float32]) -> Candidates:
        candidates = Candidates(tokens, logits)
        lib.llama_sampler_apply(self._sampler, ctypes.byref(candidates.array))
        return candidates

    def accept(self, token: int) -> None:
        """Go on behind `token`, which is admitted: of any other llama.cpp ends the process."""
        lib.llama_sampler_accept(self._sampler, token)

    def close(self) -> None:
        """Free it. Always safe."""
        if self._sampler:
            lib.llama_sampler_free(self._sampler)
            self._sampler = None


class Candidates:
    """Tokens with their logits, as samplers take them."""

    def __init__(self, tokens: NDArray[np.int_], logits: NDArray[np.float32]) -> None:
        self.data = np.zeros(len(logits), _TOKEN_DATA)
        self.data["id"], self.data["logit"] = tokens, logits
        pointer = self.data.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
        self.array = lib.llama_token_data_array(pointer, len(logits), -1, False)

    @property
    def any(self) -> bool:
        """Whether any of them may be chosen."""
        return bool(np.isfinite(self.data["logit"]).any())

    @property
    def selected(self) -> int:
        """The token that a sampler chain chose."""
        return int(self.array.data[self.array.selected].id)


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the natural-log probabilities of `logits`, shape (vocabulary,)."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))
