"""What the next token of an answer may be: within a grammar, or what ends a thought.

Which tokens these are is computed here, of unsealed requests. The application is told before each of them.
"""

from __future__ import annotations

import numpy as np

from flexserve.tee_client.sampling import admitted
from flexserve.trusted.text.grammar import Confinement
from flexserve.trusted.text.thoughts import Thoughts
from flexserve.trusted.text.tokenizer import Tokenizer


class Bounds:
    """Follows one answer. Belongs to the engine thread."""

    def __init__(self, vocabulary: Tokenizer, thoughts: Thoughts, confinement: Confinement | None) -> None:
        """`confinement`: of the answer, or where that begins with a thought, of what comes behind it."""
        self._vocabulary, self._thoughts = vocabulary, thoughts
        self._confinement = None if thoughts.inside else confinement
        self._behind_thought = confinement
        self._told = False  # of the next token

    def next(self) -> bytes | None:
        """Return the tokens that may come next, a bit for each; None: any, or they were told already."""
        if self._told:
            return None
        self._told = True
        size = self._vocabulary.size
        forced = self._thoughts.forced()
        if forced is not None:
            return admitted([forced], size)
        if self._thoughts.inside and self._behind_thought is not None:  # the answer comes behind the thought
            endings = set(self._vocabulary.endings)
            return admitted([token for token in range(size) if token not in endings], size)
        if self._confinement is None:
            return None
        return _bits(self._confinement, size)

    def took(self, token: int, text: str) -> None:
        """Record the next token and its text. Raises CallerError when nothing may come behind it."""
        self._told = False
        if self._confinement is not None:
            self._confinement.accept(token)
        if self._thoughts.took(text) and self._behind_thought is not None:
            self._confinement = self._behind_thought


def _bits(confinement: Confinement, size: int) -> bytes:
    mask = np.zeros(size, np.uint8)
    mask[confinement.admitted()] = 1
    return np.packbits(mask, bitorder="little").tobytes()
