"""What a smaller model expects a generation to say next: guesses, which the generation's own model checks."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np

from flexserve.errors import CallerError
from flexserve.trusted.engine.context import BATCH, Span
from flexserve.trusted.kv.slots import common_prefix
from flexserve.trusted.open_model import OpenModel


class Guesser:
    """A sequence of a smaller model that follows one generation. Belongs to the engine thread."""

    def __init__(self, entry: OpenModel, owner: str) -> None:
        """Take a sequence of `entry`, whose memory it holds until `close`. Raises GrantRefusedError."""
        self.entry, self._uses = entry, contextlib.ExitStack()
        self._uses.enter_context(entry.using())
        try:
            claimed = entry.conversations.claim(owner, [], [])
        except BaseException:
            self._uses.close()
            raise
        self._slot = claimed[0] if claimed is not None else None
        if self._slot is not None:
            self._uses.callback(entry.conversations.release, self._slot, keep=False)

    def close(self) -> None:
        """Give the sequence back. Always safe."""
        self._uses.close()

    def guess(self, tokens: Sequence[int], count: int) -> list[int]:
        """Return what may follow `tokens`, at most `count` of them; none while it is still reading.

        One graph of it reads BATCH tokens at most. Raises what restoring weights raises; what it had read
        is forgotten then.
        """
        slot, context = self._slot, self.entry.context
        if slot is None or len(tokens) + count > context.size:
            return []
        try:
            known = min(common_prefix(slot.tokens, tokens), len(tokens) - 1)
            slot.tokens = list(tokens[: context.take(slot.number, keep=known)])
            token = self._read(tokens[len(slot.tokens) :][:BATCH])
            if len(slot.tokens) < len(tokens):
                return []
            guesses = [token]
            while len(guesses) < count and not self.entry.vocabulary.ends(token):
                token = self._read([token])
                guesses.append(token)
            return guesses
        except BaseException:
            slot.tokens = []
            raise

    def _read(self, tokens: Sequence[int]) -> int:
        """Take `tokens` in; return the likeliest next one."""
        assert self._slot is not None, "it has no sequence"
        self.entry.context.decode([Span(self._slot.number, len(self._slot.tokens), tokens)])
        self._slot.tokens += tokens
        return int(np.argmax(self.entry.context.logits(0)))


def require_same_words(entry: OpenModel, draft: OpenModel) -> None:
    """Raise CallerError unless tokens of `draft` mean in `entry` what they mean there."""
    if entry.vocabulary.fingerprint != draft.vocabulary.fingerprint:
        raise CallerError(
            f"{draft.name} cannot guess for {entry.name}: their vocabularies differ.",
            hint="Name a smaller model of the same family as its draft.",
            code="draft_mismatch",
        )
