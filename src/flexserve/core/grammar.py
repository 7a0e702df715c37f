"""JSON schemas as grammars: text in llama.cpp's GBNF that admits exactly the answers a schema allows.

A schema comes from a client, so everything about it is bounded, and nothing of it is ever quoted in
an error: names of rules are numbers, and literals are escaped character by character. What this
cannot enforce it refuses (`lenient`: ignores) instead of promising it silently. Of a schema that has
`properties`, objects hold those, in the schema's order, and others only if `additionalProperties`
says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import unquote

from flexserve.errors import CallerError

MAX_DEPTH = 32  # of schemas within schemas
MAX_RULES = 2000
MAX_GRAMMAR = 1 << 19  # characters
MAX_REPEAT = 1000  # of one item or character; llama.cpp makes a rule of each and refuses 2000 …
MAX_REPEATS = 8000  # … and of all of them together

MAX_BRANCHES = 512  # ways in which texts can go on, of all places together

# Keywords that would narrow an answer and that are not enforced. Unknown ones are annotations.
_UNENFORCED = frozenset(
    (
        *("pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        *("uniqueItems", "contains", "minContains", "maxContains", "unevaluatedItems"),
        *("patternProperties", "propertyNames", "minProperties", "maxProperties", "unevaluatedProperties"),
        *("dependentRequired", "dependentSchemas", "not", "if", "then", "else", "$dynamicRef"),
    )
)
_STRUCTURE = frozenset(("properties", "items", "prefixItems", "enum", "const", "allOf", "$ref"))
_TYPES = frozenset(("object", "array", "string", "number", "integer", "boolean", "null"))

# The JSON that every schema is a part of. White space is bounded: a model could spend its answer on it.
_JSON = {
    "ws": r'( " " | "\n" [ \t]{0,20} )?',
    "value": 'object | array | string | number | boolean | "null"',
    "object": '"{" ws ( member ( "," ws member )* )? ws "}"',
    "member": 'string ":" ws value',
    "array": '"[" ws ( value ( "," ws value )* )? ws "]"',
    "string": r'"\"" char* "\""',
    "char": r'[^"\\\x7F\x00-\x1F] | "\\" ( ["\\/bfnrt] | "u" [0-9a-fA-F]{4} )',
    "number": 'integer ( "." [0-9]{1,16} )? ( [eE] [-+]? [0-9]{1,2} )?',
    "integer": '"-"? ( "0" | [1-9] [0-9]{0,15} )',
    "boolean": '"true" | "false"',
    "date": '[0-9]{4} "-" ( "0" [1-9] | "1" [0-2] ) "-" ( "0" [1-9] | [12] [0-9] | "3" [01] )',
    "time": '( [01] [0-9] | "2" [0-3] ) ":" [0-5] [0-9] ":" [0-5] [0-9] ( "." [0-9]{1,6} )? '
    '( "Z" | [-+] ( [01] [0-9] | "2" [0-3] ) ":" [0-5] [0-9] )',
    "uuid": '[0-9a-f]{8} "-" [0-9a-f]{4} "-" [0-9a-f]{4} "-" [0-9a-f]{4} "-" [0-9a-f]{12}',
}
_FORMATS = {"date": "date", "time": "time", "date-time": 'date "T" time', "uuid": "uuid"}


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
            elif depth < MAX_DEPTH:
                branches.append(f"{quoted(group[0][:shared])} {self.one_of(rest, depth + 1)}")
            else:
                self.branch(len(group))
                branches += [quoted(text) for text in group]
        return self.add(" | ".join(branches))

    def text(self, root: str) -> str:
        """Return the whole grammar; `root` is the expression that an answer has to follow."""
        lines = [f"root ::= {root}", *(f"{name} ::= {body}" for name, body in self._rules.items())]
        return "\n".join(lines) + "\n"


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
        if not self._lenient:
            for keyword in sorted(_UNENFORCED & schema.keys()):
                refuse(f"{keyword!r} cannot be enforced")
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
        return self._typed(kind, schema, depth)

    def _typed(self, kind: Any, schema: dict[str, Any], depth: int) -> str:
        if kind is None:
            return "value"
        if not isinstance(kind, str) or kind not in _TYPES:
            refuse("its 'type' is none of JSON's")
        match kind:
            case "object" if "properties" in schema or "additionalProperties" in schema:
                return self._object(schema, depth)
            case "array" if schema.keys() & {"items", "prefixItems", "minItems", "maxItems"}:
                return self._array(schema, depth)
            case "string":
                return self._string(schema)
            case "null":
                return self._grammar.add('"null"')
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
