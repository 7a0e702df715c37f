"""Grammars in llama.cpp's GBNF: rules under construction, with bounds on all of it.

What rules are made of may come from a client: names of rules are numbers, and literals are escaped
character by character.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NoReturn

from flexserve.errors import CallerError

MAX_RULES = 2000
MAX_GRAMMAR = 1 << 19  # characters
MAX_REPEAT = 1000  # of one item or character; llama.cpp makes a rule of each and refuses 2000 …
MAX_REPEATS = 8000  # … and of all of them together
MAX_BRANCHES = 512  # ways in which texts can go on, of all places together
_MAX_FORKS = 32  # of texts that begin alike

# The JSON that every schema is a part of. White space is bounded: a model could spend its answer on it.
_JSON = {
    "ws": r'( " " | "\n" [ \t]{0,20} )?',
    "value": "object | array | string | number | boolean | null",
    "object": '"{" ws ( member ( "," ws member )* )? ws "}"',
    "member": 'string ":" ws value',
    "array": '"[" ws ( value ( "," ws value )* )? ws "]"',
    "string": r'"\"" char* "\""',
    "char": r'[^"\\\x7F\x00-\x1F] | "\\" ( ["\\/bfnrt] | "u" [0-9a-fA-F]{4} )',
    "number": 'integer ( "." [0-9]{1,16} )? ( [eE] [-+]? [0-9]{1,2} )?',
    "integer": '"-"? ( "0" | [1-9] [0-9]{0,15} )',
    "null": '"null"',
    "boolean": '"true" | "false"',
    "date": '[0-9]{4} "-" ( "0" [1-9] | "1" [0-2] ) "-" ( "0" [1-9] | [12] [0-9] | "3" [01] )',
    "time": '( [01] [0-9] | "2" [0-3] ) ":" [0-5] [0-9] ":" [0-5] [0-9] ( "." [0-9]{1,6} )? '
    '( "Z" | [-+] ( [01] [0-9] | "2" [0-3] ) ":" [0-5] [0-9] )',
    "uuid": '[0-9a-f]{8} "-" [0-9a-f]{4} "-" [0-9a-f]{4} "-" [0-9a-f]{4} "-" [0-9a-f]{12}',
}


class Grammar:
    """Rules on their way to a grammar. Raises CallerError when they become too many."""

    def __init__(self) -> None:
        self._rules: dict[str, str] = dict(_JSON)
        self._size = 0
        self._repeats = self._branches = 0

    def reserve(self) -> str:
        """Return the name of a rule to be given with `define`."""
        name = f"r{len(self._rules)}"
        self._rules[name] = ""
        if len(self._rules) > MAX_RULES:
            refuse("it needs too many rules")
        return name

    def define(self, name: str, body: str) -> None:
        """Give the reserved rule `name` its body."""
        self._rules[name] = body
        self._size += len(body)
        if self._size > MAX_GRAMMAR:
            refuse("it becomes too large a grammar")

    def add(self, body: str) -> str:
        """Add a rule and return its name."""
        name = self.reserve()
        self.define(name, body)
        return name

    def repeat(self, item: str, least: int, most: int | None) -> str:
        """Return the expression for `item` (a rule's name or a group) `least` to `most` times."""
        self._repeats += max(least, most or 0)
        if max(least, most or 0) > MAX_REPEAT or self._repeats > MAX_REPEATS:
            refuse(f"a length or count is above {MAX_REPEAT}")
        return f"{item}{{{least},{'' if most is None else most}}}"

    def branch(self, ways: int) -> None:
        """Take note that a text can go on in so many ways: for each token, all of them are tried."""
        self._branches += ways
        if self._branches > MAX_BRANCHES:
            refuse(f"it has more than {MAX_BRANCHES} alternatives and optional properties")

    def one_of(self, texts: Sequence[str], depth: int = 0) -> str:
        """Add the rule of exactly one of `texts` and return its name: what begins alike is written once."""
        groups: dict[str, list[str]] = {}
        for text in dict.fromkeys(texts):
            groups.setdefault(text[:1], []).append(text)
        branches = []
        for group in groups.values():
            shared = _common(group)
            rest = [text[shared:] for text in group]
            if len(group) == 1:
                branches.append(quoted(group[0]))
            elif depth < _MAX_FORKS:
                branches.append(f"{quoted(group[0][:shared])} {self.one_of(rest, depth + 1)}")
            else:
                self.branch(len(group))
                branches += [quoted(text) for text in group]
        return self.add(" | ".join(branches))

    def text(self, root: str) -> str:
        """Return the whole grammar; `root` is the expression that an answer has to follow."""
        lines = [f"root ::= {root}", *(f"{name} ::= {body}" for name, body in self._rules.items())]
        return "\n".join(lines) + "\n"


def literal(value: Any) -> str:
    """Return the expression for exactly this JSON value."""
    return quoted(written(value))


def written(value: Any) -> str:
    """Return a JSON value as text. Raises CallerError for what is none."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        refuse("a constant in it is not JSON")


def quoted(text: str) -> str:
    """Return the expression for exactly this text."""
    return f'"{"".join(_escaped(char) for char in text)}"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    return char if char.isascii() and char.isprintable() else f"\\U{ord(char):08X}"


def refuse(why: str) -> NoReturn:
    """Raise the error of a schema that cannot be followed."""
    raise CallerError(
        f"The JSON schema cannot be followed: {why}.",
        hint="Simplify the schema, or leave it out.",
        code="schema_unsupported",
    )


def _common(texts: Sequence[str]) -> int:
    """Return how many characters all of `texts` begin with."""
    first, last = min(texts), max(texts)
    return next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
