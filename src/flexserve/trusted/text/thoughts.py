"""Where an answer is a thought: how long it may be, and what ends it."""

from __future__ import annotations

from collections.abc import Sequence

from flexserve.protocol.notation import Notation

_HARMONY_OPEN, _HARMONY_CLOSE = "<|channel|>analysis<|message|>", "<|end|>"
_HARMONY_END = "<|end|><|start|>assistant<|channel|>final<|message|>"
_MOST_BLANK = 64  # characters of white space before a thought


def thought_end(notation: Notation) -> str:
    """Return the text that ends a thought and begins what is said."""
    return _HARMONY_END if notation.harmony else notation.thought_close


class Thoughts:
    """Follows the text of a generation in and out of thoughts. Belongs to the engine thread.

    `inside`: it is in one now. `begun` is what of the answer the prompt has; a thought may have `most` tokens
    (None: any number), then come those of `end`. `must_end`: the answer may not end inside of one.
    """

    def __init__(
        self, notation: Notation | None, begun: str, end: Sequence[int], *, most: int | None, must_end: bool
    ) -> None:
        self._harmony = notation is not None and notation.harmony
        self._open = self._close = ""
        if notation is not None:
            marks = _HARMONY_OPEN, _HARMONY_CLOSE
            self._open, self._close = (
                marks if self._harmony else (notation.thought_open.strip(), notation.thought_close.strip())
            )
        self.inside = bool(self._open) and begun.strip() == self._open
        self._end, self._most, self._must_end = end, most, must_end
        self._tail = ""  # of the text: what may be the beginning of a mark
        self._may_begin = not self.inside and bool(self._open)
        self._count = 0
        self._forced: list[int] = []

    def forced(self) -> int | None:
        """Return the token that has to come next, None when the model chooses."""
        if self.inside and self._most is not None and self._count >= self._most and not self._forced:
            self._most = None
            self._forced = list(self._end)
        return self._forced.pop(0) if self._forced else None

    def instead_of_end(self, token: int) -> int:
        """Return what comes in the place of `token`, by which the model would end its answer in a thought."""
        if not (self._must_end and self._end):
            return token
        first, *self._forced = self._end
        return first

    def took(self, text: str) -> bool:
        """Record the text of a token; return whether a thought has ended with it."""
        self._count += self.inside
        if not (self.inside or self._may_begin):
            return False
        self._tail += text
        mark = self._close if self.inside else self._open
        at = self._tail.find(mark)
        if at < 0 or not (self.inside or self._harmony or not self._tail[:at].strip()):
            blank = self._tail.strip()
            if not (self.inside or self._harmony or mark.startswith(blank)) or len(self._tail) > _MOST_BLANK:
                self._may_begin = self._may_begin and self._harmony
                self._tail = self._tail[-len(mark) :]
            return False
        self._tail = self._tail[at + len(mark) :]
        self.inside, ended = not self.inside, self.inside
        self._may_begin = not self.inside and self._harmony
        self._count = 0
        return ended
