"""JSON schemas as grammars: text in llama.cpp's GBNF that admits exactly the answers a schema allows.

A schema comes from a client, so everything about it is bounded, and nothing of it is ever quoted in
an error. What this cannot enforce it refuses (`lenient`: ignores) instead of promising it silently.
Of a schema that has `properties`, objects hold those, in the schema's order, and others only if
`additionalProperties` says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from flexserve.core.grammar import MAX_RULES, Grammar, literal, refuse, written
from flexserve.core.ranges import integer_between

MAX_DEPTH = 32  # of schemas within schemas

# Keywords that would narrow an answer and that are not enforced. Unknown ones are annotations.
_UNENFORCED = frozenset(
    (
        *("pattern", "multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
        *("uniqueItems", "contains", "minContains", "maxContains", "unevaluatedItems"),
        *("patternProperties", "propertyNames", "minProperties", "maxProperties", "unevaluatedProperties"),
        *("dependentRequired", "dependentSchemas", "not", "if", "then", "else", "$dynamicRef"),
    )
)
_RANGES = frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"))
_STRUCTURE = frozenset(("properties", "items", "prefixItems", "enum", "const", "allOf", "$ref"))
_TYPES = frozenset(("object", "array", "string", "number", "integer", "boolean", "null"))

_FORMATS = {"date": "date", "time": "time", "date-time": 'date "T" time', "uuid": "uuid"}


class SchemaRules:
    """Adds the rules of the schemas in one `document` to a grammar."""

    def __init__(self, grammar: Grammar, document: Any, *, lenient: bool) -> None:
        self._grammar, self._document, self._lenient = grammar, document, lenient
        self._references: dict[str, str] = {}
        self._merges = 0

    def rule(self, schema: Any, depth: int = 0) -> str:
        """Return the name of the rule for `schema`. Raises CallerError for what cannot be followed."""
        if depth > MAX_DEPTH:
            refuse(f"it nests deeper than {MAX_DEPTH} schemas")
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, dict):
            refuse("a part of it is not a schema that anything fits")
        unenforced = _UNENFORCED if _has_fractions(schema) else _UNENFORCED - _RANGES
        if not self._lenient and (keywords := unenforced & schema.keys()):
            refuse(f"{min(keywords)!r} cannot be enforced")
        if "$ref" in schema:
            return self._reference(schema["$ref"], depth)
        if "allOf" in schema:
            return self.rule(self._merged(schema, depth), depth + 1)
        if "const" in schema or "enum" in schema:
            values = [schema["const"]] if "const" in schema else _list(schema["enum"], "enum")
            return self._grammar.one_of([written(value) for value in values])
        return self._alternatives(schema, depth)

    def _alternatives(self, schema: dict[str, Any], depth: int) -> str:
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                if _STRUCTURE & schema.keys():
                    refuse(f"{keyword!r} beside other structure cannot be followed")
                return self._union(_list(schema[keyword], keyword), depth)
        kind = schema.get("type", _implied(schema))
        if isinstance(kind, list):
            bare = {key: value for key, value in schema.items() if key != "type"}
            return self._union([{**bare, "type": one} for one in _list(kind, "type")], depth)
        return self._typed(kind, schema, depth) if kind is not None else "value"

    def _typed(self, kind: Any, schema: dict[str, Any], depth: int) -> str:
        if not isinstance(kind, str) or kind not in _TYPES:
            refuse("its 'type' is none of JSON's")
        match kind:
            case "object" if "properties" in schema or "additionalProperties" in schema:
                return self._object(schema, depth)
            case "array" if schema.keys() & {"items", "prefixItems", "minItems", "maxItems"}:
                return self._array(schema, depth)
            case "string":
                return self._string(schema)
            case "integer" if _RANGES & schema.keys():
                return self._integer(schema)
        return kind

    def _union(self, alternatives: Sequence[Any], depth: int) -> str:
        self._grammar.branch(len(alternatives))
        return self._grammar.add(" | ".join(self.rule(one, depth + 1) for one in alternatives))

    def _reference(self, pointer: Any, depth: int) -> str:
        """Return the rule of a schema elsewhere in the document. One that holds itself is a loop of rules."""
        pointer = _pointer(pointer)
        if pointer not in self._references:
            self._references[pointer] = name = self._grammar.reserve()
            self._grammar.define(name, self.rule(self._find(pointer), depth + 1))
        return self._references[pointer]

    def _find(self, pointer: str) -> Any:
        found = self._document
        for part in unquote(pointer).split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and key.isascii() and key.isdigit() and int(key[:9]) < len(found):
                found = found[int(key[:9])]
            elif isinstance(found, dict) and key in found:
                found = found[key]
            else:
                refuse("a '$ref' points to nothing")
        return found

    def _merged(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        """Return `allOf` and what is beside it as one schema."""
        whole: dict[str, Any] = {}
        beside = {key: value for key, value in schema.items() if key != "allOf"}
        for part in [*_list(schema["allOf"], "allOf"), *([beside] if beside else [])]:
            for key, value in self._resolved(part, depth).items():
                if key == "properties" and key in whole:
                    whole[key] = {**_mapping(whole[key]), **_mapping(value)}
                elif key == "required" and key in whole:
                    whole[key] = [*dict.fromkeys(_names(whole[key]) + _names(value))]
                elif key in _STRUCTURE | _UNENFORCED | {"type"} and whole.get(key, value) != value:
                    refuse("parts of its 'allOf' contradict each other")
                else:
                    whole[key] = value
        return whole

    def _resolved(self, schema: Any, depth: int) -> dict[str, Any]:
        """Return a part of an `allOf` without references and without an `allOf` of its own."""
        self._merges += 1
        if depth > MAX_DEPTH or self._merges > MAX_RULES:
            refuse("its 'allOf' nests too deeply")
        schema = _mapping(schema)
        if "$ref" in schema:
            return self._resolved(self._find(_pointer(schema["$ref"])), depth + 1)
        return self._merged(schema, depth + 1) if "allOf" in schema else schema

    # ---- the kinds of values -----------------------------------------------------------------------

    def _object(self, schema: dict[str, Any], depth: int) -> str:
        """Return the rule of an object: one rule per property for what may follow it, back to front.

        `rest` goes on behind a property, `start` where none was written yet.
        """
        properties = _mapping(schema.get("properties", {}))
        required = _names(schema.get("required", []))
        if any(name not in properties for name in required):
            refuse("it requires a property that it does not describe")
        self._grammar.branch(len(properties.keys() - set(required)))
        rest, start = self._others(schema.get("additionalProperties", False), depth)
        for name, described in reversed(list(properties.items())):
            member = self._grammar.add(f'{literal(name)} ":" ws {self.rule(described, depth + 1)}')
            if name in required:
                start = self._grammar.add(f"{member} {rest}")
                rest = self._grammar.add(f'"," ws {member} {rest}')
            else:
                start = self._grammar.add(f"{member} {rest} | {start}")
                rest = self._grammar.add(f'( "," ws {member} )? {rest}')
        return self._grammar.add(f'"{{" ws {start} ws "}}"')

    def _others(self, allowed: Any, depth: int) -> tuple[str, str]:
        """Return what may follow, and what may stand alone, of properties that have no name."""
        if allowed is False:
            nothing = self._grammar.add('""')
            return nothing, nothing
        member = self._grammar.add(f'string ":" ws {self.rule(allowed, depth + 1)}')
        rest = self._grammar.add(f'( "," ws {member} )*')
        return rest, self._grammar.add(f"( {member} {rest} )?")

    def _array(self, schema: dict[str, Any], depth: int) -> str:
        first = [self.rule(one, depth + 1) for one in _list(schema.get("prefixItems", []), "prefixItems", 0)]
        least, most = _count(schema, "minItems", 0), _count(schema, "maxItems", None)
        if most is not None and most < max(least or 0, len(first)):
            refuse("its 'maxItems' is too small")
        if first and "items" not in schema and most is None:
            most = len(first)  # a tuple
        item = self.rule(schema.get("items") or True, depth + 1)
        expression = self._items(first, item, least or 0, most)
        return self._grammar.add(f'"[" ws {expression} ws "]"')

    def _items(self, first: list[str], item: str, least: int, most: int | None) -> str:
        if most == 0:
            return '""'
        fixed = len(first) or 1
        more = self._grammar.add(f'"," ws {item}')
        upper = None if most is None else most - fixed
        tail = self._grammar.repeat(more, max(least - fixed, 0), upper) if upper != 0 else ""
        body = ' "," ws '.join(first or [item])
        return f"{body} {tail}" if first or least else f"( {body} {tail} )?"

    def _integer(self, schema: dict[str, Any]) -> str:
        lows = [_bound(schema, "minimum", math.ceil), _bound(schema, "exclusiveMinimum", _above)]
        highs = [_bound(schema, "maximum", math.floor), _bound(schema, "exclusiveMaximum", _below)]
        low = max((one for one in lows if one is not None), default=None)
        expression = integer_between(low, min((one for one in highs if one is not None), default=None))
        if expression is None:
            refuse("no integer is in its range, or its bounds are too large")
        return self._grammar.add(expression)

    def _string(self, schema: dict[str, Any]) -> str:
        least, most = _count(schema, "minLength", 0), _count(schema, "maxLength", None)
        if least or most is not None:
            if most is not None and most < (least or 0):
                refuse("its 'maxLength' is too small")
            body = self._grammar.repeat("char", least or 0, most) if most != 0 else ""
            return self._grammar.add(rf'"\"" {body} "\""')
        form = schema.get("format")
        if isinstance(form, str) and form in _FORMATS:  # others, as of e-mail, are annotations
            return self._grammar.add(rf'"\"" {_FORMATS[form]} "\""')
        return "string"


def schema_grammar(text: str) -> str:
    """Return the grammar of answers that follow the JSON schema `text`; "{}" means any JSON object.

    Raises CallerError (code "schema_unsupported") for what is no schema or cannot be enforced.
    """
    grammar = Grammar()
    return grammar.text(schema_rule(grammar, text))


def schema_rule(grammar: Grammar, text: str) -> str:
    """Add the rules of the JSON schema `text` and return the name of the first; see schema_grammar."""
    schema = parse(text)
    if schema in ({}, True):
        return "object"
    return SchemaRules(grammar, schema, lenient=False).rule(schema)


def parse(text: str) -> Any:
    """Return the JSON value of `text`. Raises CallerError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        refuse("it is not JSON, or nests too deeply")


def _has_fractions(schema: Mapping[str, Any]) -> bool:
    """Return whether a schema takes numbers that are no integers; ranges of those are not enforced."""
    kind = schema.get("type", "number")
    return "number" in kind if isinstance(kind, list) else kind == "number"


def _implied(schema: Mapping[str, Any]) -> str | None:
    """Return the type that a schema without `type` describes."""
    if "properties" in schema or "additionalProperties" in schema:
        return "object"
    if "items" in schema or "prefixItems" in schema:
        return "array"
    return "string" if "minLength" in schema or "maxLength" in schema else None


def _list(value: Any, keyword: str, least: int = 1) -> list[Any]:
    if not isinstance(value, list) or len(value) < least:
        refuse(f"{keyword!r} is not a list of something")
    return value


def _names(value: Any) -> list[str]:
    names = _list(value, "required", least=0)
    if not all(isinstance(name, str) for name in names):
        refuse("'required' is not a list of names")
    return names


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        refuse("a part of it is not an object")
    return value


def _bound(schema: Mapping[str, Any], keyword: str, rounded: Callable[[float], int]) -> int | None:
    value = schema.get(keyword)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e18:
        refuse(f"{keyword!r} is not a number of that size")
    return rounded(value)


def _above(value: float) -> int:
    return math.floor(value) + 1


def _below(value: float) -> int:
    return math.ceil(value) - 1


def _pointer(value: Any) -> str:
    if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
        refuse("a '$ref' points outside of it")
    return value


def _count(schema: Mapping[str, Any], keyword: str, otherwise: int | None) -> int | None:
    value = schema.get(keyword)
    if value is None:
        return otherwise
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        refuse(f"{keyword!r} is not a count")
    return value
