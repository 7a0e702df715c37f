"""Text that comes in pieces, read by code that waits for more where it has to.

The methods are generators: they yield while what they need may still come, so what they return depends on
the whole text only, never on how it was cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from typing import TypeVar

from flexserve.protocol.notation import ANY

T = TypeVar("T")
Waiting = Generator[None, None, T]

_WORD = re.compile(r"[\w.:\-]")
_MOST_WORD = 128  # characters of a name or an id
_MOST_STRING = 256  # of a string that is read whole


class HeldText:
    """What of a text is not yet decided, from place 0 on. Grows by `add`, shrinks by `take`."""

    def __init__(self) -> None:
        self.text = ""
        self.final = False

    def add(self, text: str) -> None:
        """Append more."""
        self.text += text

    def take(self, length: int) -> str:
        """Remove `length` characters from the front, and return them."""
        taken, self.text = self.text[:length], self.text[length:]
        return taken

    def char(self, at: int) -> Waiting[str]:
        """Return the character at `at`, "" behind the end."""
        while len(self.text) <= at and not self.final:
            yield
        return self.text[at : at + 1]

    def blank(self, at: int) -> Waiting[int]:
        """Return where white space that begins at `at` ends."""
        while (yield from self.char(at)).isspace():
            at += 1
        return at

    def literal(self, at: int, mark: str, *, cut: bool = False) -> Waiting[tuple[int, list[str]] | None]:
        """Return where `mark` at `at` ends, and its words that stand for ANY; None when it is not there.

        White space in the mark stands for any, and so does its beginning. `cut`: the text may end in it.
        """
        begun = False
        words = []
        for chunk in mark.split():
            at = yield from self.blank(at)
            for number, part in enumerate(chunk.split(ANY)):
                if number:
                    word = yield from self.word(at)
                    words.append(word)
                    at += len(word)
                for char in part:
                    if (found := (yield from self.char(at))) != char:
                        return (at, words) if cut and begun and not found else None
                    at, begun = at + 1, True
        return at, words

    def word(self, at: int) -> Waiting[str]:
        """Return the name or number at `at`, "" when there is none or it is too long."""
        end = at
        while _WORD.fullmatch((yield from self.char(end))):
            end += 1
            if end - at > _MOST_WORD:
                return ""
        return self.text[at:end]

    def string(self, at: int) -> Waiting[tuple[str, int] | None]:
        """Return the JSON string at `at`, and where it ends; None when there is none, or a long one."""
        end = at + 1
        if (yield from self.char(at)) != '"':
            return None
        while (char := (yield from self.char(end))) != '"':
            if not char or end - at > _MOST_STRING:
                return None
            end += 2 if char == "\\" else 1
        try:
            value = json.loads(self.text[at : end + 1], strict=False)
        except ValueError:
            return None
        return str(value), end + 1

    def find(self, mark: str, at: int, most: int) -> Waiting[int]:
        """Return where `mark` stands from `at` on, -1 when it does not within `most` characters."""
        start = at
        while (found := self.text.find(mark, start)) < 0:
            if self.final or len(self.text) - at > most:
                return -1
            start = max(at, len(self.text) - len(mark) + 1)
            yield
        return found if found - at <= most else -1


def overlap(text: str, mark: str) -> int:
    """Return the length of the longest end of `text` that begins `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
