"""Arguments of calls, from the ways in which models write them to JSON."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from flexserve.protocol.notation import ANY

_MOST_PYTHON = 1 << 16  # characters that Python's own parser gets
_MOST_LEVELS = 32  # of tags within tags
_WORD = re.compile(r"[^\s,:{}\[\]]+")
_CONSTANTS = {"true": True, "false": False, "null": None}

Marks = tuple[str, str, str]  # before a key, behind it, and behind its value, where ANY is the key
Named = tuple[str, str]  # a name and its arguments, JSON of an object


class JsonText:
    """Follows JSON that comes in pieces to its end, and escapes control characters in its strings.

    `depth`: of how many brackets that are open before.
    """

    def __init__(self, depth: int = 0) -> None:
        self._depth, self._quoted, self._escaped = depth, False, False
        self.ended = False

    def feed(self, text: str) -> tuple[str, int]:
        """Return what `text` adds, and how many of its characters belong to it: all, until it has ended."""
        written: list[str] = []
        for used, char in enumerate(text, 1):
            written.append(self._next(char))
            if self.ended:
                return "".join(written), used
        return "".join(written), len(text)

    def _next(self, char: str) -> str:
        if self._quoted:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._quoted = False
            elif char < " ":
                return json.dumps(char)[1:-1]
            return char
        if char == '"':
            self._quoted = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            self.ended = self._depth <= 0
        return char


def call_in(value: Any, *, absent: dict[str, Any] | None) -> Named | None:
    """Return the call that a JSON value stands for, None if it is none. `absent`: arguments not given."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict):
        return None
    name = next((value[key] for key in ("name", "tool_name", "function") if key in value), None)
    arguments = next((value[key] for key in ("arguments", "parameters") if key in value), absent)
    if isinstance(arguments, str):  # JSON in JSON, as OpenAI's API has it
        arguments = _loaded(arguments, otherwise=0) if arguments.strip() else {}
    if arguments is None and absent is not None:
        arguments = absent
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return name, json.dumps(arguments, ensure_ascii=False)


def calls_in(text: str) -> list[Named]:
    """Return the calls in JSON that all of `text` consists of; none when it holds anything else."""
    decoder, calls, at = json.JSONDecoder(strict=False), list[Named](), 0
    text = text.strip()
    try:
        while at < len(text):
            value, at = decoder.raw_decode(text, at)
            found = [call_in(one, absent=None) for one in (value if isinstance(value, list) else [value])]
            if not found or None in found:  # an answer in JSON may well have a name, too
                return []
            calls += [call for call in found if call is not None]
            while at < len(text) and text[at] in "; \n\t":
                at += 1
    except (ValueError, RecursionError):
        return []
    return calls


def one_call(text: str) -> Named | None:
    """Return the call that `text` is as JSON, None if it is none; no arguments are none."""
    return call_in(_loaded(text), absent={})


def typed(text: str, schema: Any, *, string: bool | None) -> str:
    """Return as JSON the value that a model wrote as plain `text`.

    `schema` is the argument's (None: unknown); `string`: whether the model says that it is one.
    """
    types = schema.get("type") if isinstance(schema, Mapping) else None
    kinds = [types] if isinstance(types, str) else types if isinstance(types, list) else []
    if string or (string is None and kinds and set(kinds) <= {"string"}):
        return json.dumps(text, ensure_ascii=False)
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        value = {"true": True, "false": False, "none": None}.get(text.strip().lower(), text)
        if value is text and {"object", "array"} & set(kinds):
            value = _python_value(text)
    if "string" in kinds and not _fits(value, kinds):
        value = text
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)


def may_nest(schema: Any) -> bool:
    """Return whether an argument of this schema (None: unknown) may be tags within a tag."""
    return not isinstance(schema, Mapping) or schema.get("type") not in (
        "string",
        "integer",
        "number",
        "boolean",
    )


def nested(text: str, marks: Marks, schema: Any, depth: int = 0) -> Any:
    """Return the object, or the list, that a model wrote as tags within a tag.

    `schema` is the value's (None: unknown). Raises ValueError for what is none, or has too many levels.
    """
    opening, middle, closing = marks
    schema = schema if isinstance(schema, Mapping) else {}
    properties, items = schema.get("properties"), schema.get("items")
    values: list[tuple[str, Any]] = []
    while text := text.strip():
        key, found, rest = text.removeprefix(opening).partition(middle)
        if depth >= _MOST_LEVELS or not text.startswith(opening) or not found:
            raise ValueError
        end = _end_of(rest, opening + key + middle, mark := closing.replace(ANY, key))
        of_key = properties.get(key, items) if isinstance(properties, Mapping) else items
        inner = rest[:end]
        if inner.lstrip().startswith(opening):
            value = nested(inner, marks, of_key, depth + 1)
        else:
            value = json.loads(typed(inner, of_key, string=None))
        values.append((key, value))
        text = rest[end + len(mark) :]
    if schema.get("type") == "array" or {key for key, _ in values} == {"item"}:
        return [value for _, value in values]
    return dict(values)


def _end_of(text: str, opening: str, closing: str) -> int:
    """Return where the mark `closing` is that belongs to an `opening` before `text`. Raises ValueError."""
    at, depth = 0, 1
    while True:
        end = text.index(closing, at)
        depth += text.count(opening, at, end) - 1
        if depth == 0:
            return end
        at = end + len(closing)


def python_calls(text: str) -> list[Named]:
    """Return the calls in Python that all of `text` is: `f(x=1)`, or several in a list; else none."""
    if len(text) > _MOST_PYTHON:
        return []
    try:
        body = ast.parse(text.strip(), mode="eval").body
        made = body.elts if isinstance(body, ast.List | ast.Tuple) else [body]
        return [_python_call(one) for one in made]
    except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError):
        return []


def braced(text: str, quote: str) -> str | None:
    """Return as JSON an object whose keys have no quotes and whose strings are between `quote`s.

    None if `text` is none.
    """
    braces = _Braces(text, quote)
    try:
        value = braces.value()
        whole = isinstance(value, dict) and not text[braces.at :].strip()
        return json.dumps(value, ensure_ascii=False, allow_nan=False) if whole else None
    except (ValueError, IndexError, RecursionError):
        return None


def _loaded(text: str, otherwise: Any = None) -> Any:
    """Return JSON as a value, `otherwise` for what is none. Models forget to escape line feeds."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return otherwise


def _python_value(text: str) -> Any:
    """Return the list or object that `text` is in Python, as str() writes it; else `text`."""
    try:
        value = ast.literal_eval(text.strip()) if len(text) <= _MOST_PYTHON else text
        json.dumps(value)
    except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError):
        return text
    return value if isinstance(value, list | dict) else text


def _fits(value: Any, kinds: list[Any]) -> bool:
    names = {bool: {"boolean"}, int: {"integer", "number"}, float: {"number"}, dict: {"object"}}
    found = (
        {"null"}
        if value is None
        else names.get(type(value), {"array" if isinstance(value, list) else "string"})
    )
    return bool(found & set(kinds))


def _python_call(node: ast.expr) -> Named:
    """Return the call that `node` is. Raises ValueError for what is none, TypeError for what is no JSON."""
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError
    values = {}
    for word in node.keywords:
        if word.arg is None:
            raise ValueError
        values[word.arg] = ast.literal_eval(ast.fix_missing_locations(_Constants().visit(word.value)))
    return ast.unparse(node.func), json.dumps(values, ensure_ascii=False, allow_nan=False)


class _Constants(ast.NodeTransformer):
    """JSON's constants in Python's place."""

    def visit_Name(self, node: ast.Name) -> ast.expr:  # the name is ast's
        """Return the constant that JSON calls so; other names stay, and are no values."""
        return ast.Constant(_CONSTANTS[node.id]) if node.id in _CONSTANTS else node


class _Braces:
    """Reads values of the braced style from `text`, from place `at` on."""

    def __init__(self, text: str, quote: str) -> None:
        self._text, self._quote, self.at = text, quote, 0

    def value(self) -> Any:
        """Return the next value. Raises ValueError, IndexError and RecursionError for what is none."""
        self._blank()
        if self._quote and self._text.startswith(self._quote, self.at):
            start = self.at + len(self._quote)
            end = self._text.index(self._quote, start)
            self.at = end + len(self._quote)
            return self._text[start:end]
        if self._text[self.at] == "{":
            return dict(self._pair() for _ in self._elements("}"))
        if self._text[self.at] == "[":
            return [self.value() for _ in self._elements("]")]
        if self._text[self.at] == '"':
            value, self.at = json.JSONDecoder(strict=False).raw_decode(self._text, self.at)
            return value
        return self._plain(self._word())

    def _pair(self) -> tuple[str, Any]:
        self._blank()
        quoted = self._text[self.at] == '"' or (self._quote and self._text.startswith(self._quote, self.at))
        key = str(self.value()) if quoted else self._word()
        self._blank()
        if self._text[self.at] != ":":
            raise ValueError
        self.at += 1
        return key, self.value()

    def _elements(self, end: str) -> Iterator[None]:
        """Yield at each element between brackets, of which `end` is the second."""
        self.at += 1
        self._blank()
        while self._text[self.at] != end:
            yield
            self._blank()
            if self._text[self.at] == ",":
                self.at += 1
                self._blank()
            elif self._text[self.at] != end:
                raise ValueError
        self.at += 1

    def _word(self) -> str:
        if (found := _WORD.match(self._text, self.at)) is None:
            raise ValueError
        self.at = found.end()
        return found.group()

    def _blank(self) -> None:
        while self._text[self.at : self.at + 1].isspace():
            self.at += 1

    @staticmethod
    def _plain(word: str) -> Any:
        try:
            return json.loads(word)
        except ValueError:
            return word
