"""The texts of a model's control tokens, found in other texts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

Span = tuple[int, int]  # from, to (exclusive); characters


class Markers:
    """Texts that stand for control tokens. Immutable."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = frozenset(filter(None, texts))
        self._longest = max(map(len, self._texts), default=0)
        self._least = min(map(len, self._texts), default=0)
        self._beginnings = {text[:end] for text in self._texts for end in range(1, len(text))}
        self._ends = {text[start:] for text in self._texts for start in range(1, len(text))}
        firsts = "".join(re.escape(char) for char in sorted({text[0] for text in self._texts}))
        self._first = re.compile(f"[{firsts}]" if firsts else "(?!)")
        self._lengths: dict[str, list[int]] = {}  # of those that begin alike, the longest first
        for length in sorted({len(text) for text in self._texts}, reverse=True):
            for head in {text[: self._least] for text in self._texts if len(text) == length}:
                self._lengths.setdefault(head, []).append(length)

    def occurrences(self, text: str) -> Iterator[Span]:
        """Yield where a marker stands in `text`: of those that begin at one place the longest."""
        for found in self._first.finditer(text):
            at = found.start()
            for length in self._lengths.get(text[at : at + self._least], ()):
                if text[at : at + length] in self._texts:
                    yield at, at + length
                    break

    def risks(self, text: str) -> Iterator[Span]:
        """Yield what of `text` may be of a marker: whole ones, and parts where others may write the rest."""
        yield from self.occurrences(text)
        inner, first, last = text.strip(), len(text) - len(text.lstrip()), len(text.rstrip())
        if 0 < len(inner) < self._longest and any(inner in marker for marker in self._texts):
            yield first, last
            return
        lengths = range(min(self._longest - 1, len(inner)), 0, -1)
        before = next((length for length in lengths if inner[:length] in self._ends), 0)
        yield first, first + before
        behind = next((length for length in lengths if inner[-length:] in self._beginnings), 0)
        yield last - behind, last
