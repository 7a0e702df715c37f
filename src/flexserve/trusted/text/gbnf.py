"""llama.cpp's grammars (GBNF), read: rules of characters, sequences, choices and repetitions.

A grammar comes from a client, so its size and depth are bounded, and errors say where it is wrong without
quoting it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import NoReturn

MAX_DEPTH = 64  # of brackets within brackets
MAX_REPEATS = 2000  # of one repetition, as in llama.cpp
MAX_RULES = 2048
LAST = 0x10FFFF  # the last character

Ranges = tuple[tuple[int, int], ...]  # of characters, first and last; in order, apart from each other

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:\s|#[^\r\n]*)*")
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_DEFINES = re.compile(r"::=")
_COUNTS = re.compile(r"\{\s*([0-9]{1,9})\s*(?:(,)\s*([0-9]{1,9})?\s*)?\}")
_CHARACTER = re.compile(
    r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([-nrt\\\"\[\]]))|([^\\])", re.DOTALL
)
_ESCAPES = {"n": 10, "r": 13, "t": 9}


@dataclasses.dataclass(frozen=True, slots=True)
class Characters:
    """One character of those in `ranges`."""

    ranges: Ranges


@dataclasses.dataclass(frozen=True, slots=True)
class Sequence:
    """Items one after the other."""

    items: tuple[Node, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """One of several ways."""

    ways: tuple[Node, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Repeat:
    """An item `least` to `most` times (None: without end)."""

    item: Node
    least: int
    most: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """What the rule of that name says."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Lexeme:
    """A part that is read in one go, by its number (text.lexemes)."""

    number: int


Node = Characters | Sequence | Choice | Repeat | Reference | Lexeme


def read(text: str) -> dict[str, Node]:
    """Return the rules of a grammar, "root" among them, without those that it does not need.

    Raises GrammarError for what is no grammar.
    """
    return _Reader(text).rules()


def normal(ranges: Iterator[tuple[int, int]] | list[tuple[int, int]]) -> Ranges:
    """Return ranges in order, with what touches joined."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return tuple(joined)


def references(node: Node) -> Iterator[str]:
    """Yield the names of the rules that `node` refers to."""
    match node:
        case Reference(name):
            yield name
        case Sequence(parts) | Choice(parts):
            for part in parts:
                yield from references(part)
        case Repeat(item):
            yield from references(item)


class GrammarError(ValueError):
    """A grammar is none, or too large; its text says why, without quoting it."""


class _Reader:
    """Reads a text from its beginning to its end; `_at` is where it is."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def rules(self) -> dict[str, Node]:
        found: dict[str, Node] = {}
        self._skip(lines=True)
        while self._at < len(self._text):
            name = self._take(_NAME, "a rule's name")[0]
            self._skip(lines=False)
            self._take(_DEFINES, "'::='")
            self._skip(lines=True)
            found[name] = self._choice(0)
            if self._at < len(self._text) and self._peek() not in "\r\n":
                self._fail("the end of the rule")
            self._skip(lines=True)
            if len(found) > MAX_RULES:
                raise GrammarError(f"it has more than {MAX_RULES} rules")
        return self._needed(found)

    def _needed(self, found: dict[str, Node]) -> dict[str, Node]:
        needed: dict[str, Node] = {}
        wanted = ["root"]
        while wanted:
            name = wanted.pop()
            if name in needed:
                continue
            if name not in found:
                raise GrammarError(
                    "it has no rule 'root'" if name == "root" else "a rule that it refers to is missing"
                )
            needed[name] = found[name]
            wanted += references(found[name])
        return needed

    def _choice(self, depth: int) -> Node:
        ways = [self._sequence(depth)]
        while self._peek() == "|":
            self._at += 1
            self._skip(lines=True)
            ways.append(self._sequence(depth))
        return ways[0] if len(ways) == 1 else Choice(tuple(ways))

    def _sequence(self, depth: int) -> Node:
        items: list[Node] = []
        while (begin := self._peek()) and begin not in "|)\r\n":
            item = self._item(begin, depth)
            self._skip(lines=depth > 0)
            while self._peek() and self._peek() in "*+?{":
                item = self._repeated(item)
                self._skip(lines=depth > 0)
            items.append(item)
        return items[0] if len(items) == 1 else Sequence(tuple(items))

    def _item(self, begin: str, depth: int) -> Node:
        if begin == '"':
            return self._literal()
        if begin == "[":
            return self._class()
        if begin == "(":
            return self._group(depth + 1)
        if begin == ".":
            self._at += 1
            return Characters(((0, LAST),))
        if begin in "<!":
            raise GrammarError("it names tokens, which is not supported")
        return Reference(self._take(_NAME, "a literal, a class of characters, a group or a rule's name")[0])

    def _literal(self) -> Node:
        self._at += 1
        codes: list[int] = []
        while self._peek() != '"':
            codes.append(self._character())
        self._at += 1
        items = [Characters(((code, code),)) for code in codes]
        return items[0] if len(items) == 1 else Sequence(tuple(items))

    def _class(self) -> Node:
        self._at += 1
        negated = self._peek() == "^"
        self._at += negated
        ranges: list[tuple[int, int]] = []
        while self._peek() != "]":
            first = last = self._character()
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                last = self._character()
            if last < first:
                self._fail("a range of characters in order")
            ranges.append((first, last))
        self._at += 1
        found = normal(ranges)
        if negated:
            edges = [-1, *(edge for one in found for edge in one), LAST + 1]
            gaps = zip(edges[::2], edges[1::2], strict=True)
            found = tuple((low + 1, high - 1) for low, high in gaps if low + 1 < high)
        if not found:
            self._fail("a class with a character")
        return Characters(found)

    def _group(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise GrammarError(f"it nests more than {MAX_DEPTH} groups")
        self._at += 1
        self._skip(lines=True)
        inside = self._choice(depth)
        if self._peek() != ")":
            self._fail("')'")
        self._at += 1
        return inside

    def _repeated(self, item: Node) -> Node:
        sign = self._peek()
        if sign != "{":
            self._at += 1
            return Repeat(item, 1 if sign == "+" else 0, 1 if sign == "?" else None)
        least, comma, most = self._take(_COUNTS, "a count like {2}, {2,} or {2,5}").groups()
        counts = int(least), int(least if not comma else most or least)
        if counts[1] < counts[0] or counts[1] > MAX_REPEATS:
            raise GrammarError(f"a repetition has its counts in the wrong order, or more than {MAX_REPEATS}")
        return Repeat(item, counts[0], None if comma and not most else counts[1])

    def _character(self) -> int:
        in_hex2, in_hex4, in_hex8, escaped, plain = self._take(_CHARACTER, "a character").groups()
        if plain:
            return ord(plain)
        if escaped:
            return _ESCAPES.get(escaped, ord(escaped))
        code = int(in_hex2 or in_hex4 or in_hex8, 16)
        if code > LAST or 0xD800 <= code <= 0xDFFF:
            self._fail("a character of Unicode")
        return code

    # ---- the text --------------------------------------------------------------------------------

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip(self, *, lines: bool) -> None:
        found = (_SPACE_AND_LINES if lines else _SPACE).match(self._text, self._at)
        assert found is not None
        self._at = found.end()

    def _take(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        found = pattern.match(self._text, self._at)
        if found is None:
            self._fail(what)
        self._at = found.end()
        return found

    def _fail(self, what: str) -> NoReturn:
        raise GrammarError(f"in line {self._text.count(chr(10), 0, self._at) + 1} there should be {what}")
