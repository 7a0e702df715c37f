"""Answers confined to a grammar: llguidance says which tokens may come next.

A grammar comes from a client, so its cost is bounded by the limits below, each of which ends in an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flexserve.errors import CallerError
from flexserve.protocol.schema import refuse
from flexserve.trusted.text.guidance import LLMatcher, LLTokenizer, TokenizerWrapper
from flexserve.trusted.text.rendering.compiling import LIMITS, reason

# Tokens that most strings admit are looked up apart from the rest: a tenth of a millisecond instead of
# four with 262144 tokens. llguidance's own choice of four such sets takes twice the memory for no more.
_SLICE = r'[^"\\\x00-\x1F\x7F]{1,30}'
_LONGEST = 1000  # bytes of a token; the engine's tree of tokens has no room for longer ones
_BITS = 32  # of a word of a mask


class Pieces(Protocol):
    """What tokens stand for (text.Vocabulary)."""

    def piece(self, token: int) -> bytes:
        """Return the bytes that `token` stands for (control tokens: none)."""

    def ends(self, token: int) -> bool:
        """Return whether `token` ends a generation."""


class TokenTree:
    """The vocabulary of a model as grammars see it. Immutable; 262144 tokens take about a second.

    What a token says is all that counts: control tokens say nothing, so none of them is ever admitted
    but those that end an answer and the `shown`, which have texts here; tokens that say the same are
    admitted together.
    """

    def __init__(
        self, vocabulary: Pieces, size: int, shown: Mapping[int, bytes] = MappingProxyType({})
    ) -> None:
        pieces = [shown.get(token) or vocabulary.piece(token) for token in range(size)]
        ends = [token for token in range(size) if vocabulary.ends(token)]
        if not ends:
            refuse("this model has no token that ends an answer")
        first: dict[bytes, int] = {}
        self.size = size
        self.originals = np.arange(size)  # by token: the first that says the same
        silent = set(ends)
        for token, piece in enumerate(pieces):
            if not piece or len(piece) > _LONGEST or token in silent:
                silent.add(token)
            else:
                self.originals[token] = first.setdefault(piece, token)
        self.copies = np.flatnonzero(self.originals != np.arange(size))
        for token in (*silent, *self.copies):
            pieces[token] = b""
        self.tokenizer = LLTokenizer(_Words(pieces, ends[0], sorted(silent)), eos_token=ends, slices=[_SLICE])


class _Words(TokenizerWrapper):
    """A vocabulary in the form that llguidance asks for."""

    def __init__(self, tokens: list[bytes], eos_token_id: int, special_token_ids: list[int]) -> None:
        self.is_tokenizer_wrapper = True
        self.bos_token_id = None
        self.tokens, self.eos_token_id, self.special_token_ids = tokens, eos_token_id, special_token_ids

    def __call__(self, _text: str) -> list[int]:
        return []  # nothing is forced, so nothing needs to be cut into tokens


class Confinement:
    """A grammar at some point of a text. Mutated by `accept` only.

    Raises CallerError for a grammar that cannot be followed, also later, when a step costs too much.
    """

    def __init__(self, tree: TokenTree, grammar: str) -> None:
        self._tree = tree
        self._matcher = LLMatcher(tree.tokenizer, grammar, log_level=0, limits=LIMITS)
        self._mask = np.zeros(-(-tree.size // _BITS), np.int32)
        self._begun = False
        self._fill()

    def admits(self, token: int) -> bool:
        """Return whether `token` may come next; of one that ends an answer: whether all is said."""
        original = int(self._tree.originals[token])
        return bool(self._mask[original // _BITS] >> original % _BITS & 1)

    def admitted(self) -> NDArray[np.intp]:
        """Return the tokens that may come next: never none."""
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little", count=self._tree.size)
        return np.flatnonzero(bits[self._tree.originals])

    def accept(self, token: int) -> None:
        """Go on behind `token`, which is admitted and ends nothing."""
        self._begun = True
        self._matcher.consume_token(int(self._tree.originals[token]))
        self._fill()

    def _fill(self) -> None:
        if not self._matcher.is_error():
            self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if not self._matcher.is_error():
            return
        error = self._matcher.get_error()
        if "NoExtension" not in error or not self._begun:
            refuse(reason(error))
        raise CallerError(
            "The model's vocabulary cannot write what the schema asks for.",
            hint="Simplify the schema, or use another model.",
            code="schema_unsatisfiable",
        )
