"""JSON schemas as the grammar engine takes them: bounded, and without what it would answer wrongly.

llguidance follows schemas by itself, and refuses keywords that it cannot enforce. Done here: forms that
pydantic and zod write and that it lacks are put into ones that it has, what could end in an invalid
answer is refused, and objects are closed where that is sure to admit valid answers only. A schema comes
from a client: nothing of it is ever quoted in an error.
"""

from __future__ import annotations

import decimal
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from flexserve.errors import CallerError

Schema = dict[str, Any]

MAX_DEPTH = 64  # of schemas within schemas
_MAX_MULTIPLE = 1000  # significant part of a multipleOf: a step of the engine costs time in proportion

_EXACT = 1 << 53  # integers up to here are doubles, which the engine counts with
_LEAST = 1024.0 - (1 << 63)  # the engine takes no bound below
_BOUNDS = {
    "minimum": math.inf,
    "exclusiveMinimum": math.inf,
    "maximum": -math.inf,
    "exclusiveMaximum": -math.inf,
}
_OF_NAMES = ("properties", "patternProperties", "$defs", "definitions")  # keywords: names with schemas
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "additionalItems")
_IN_PLACE = frozenset(("allOf", "anyOf", "oneOf", "$ref"))
_OF_OBJECTS = frozenset(
    (
        *("properties", "patternProperties", "additionalProperties", "required"),
        *("propertyNames", "minProperties", "maxProperties"),
    )
)
_DESCRIBED = frozenset(("properties", "patternProperties"))
_ANNOTATIONS = frozenset(("title", "description", "$comment", "examples", "default", "deprecated"))
_IGNORED = frozenset(("x-guidance", "discriminator"))  # the engine's own options; a hint beside oneOf

_DATE = (
    r"([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    r"|02-(0[1-9]|1[0-9]|2[0-8]))"
    r"|([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)-02-29)"
)
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
# Narrower than the engine's own: days that exist, no leap seconds.
_FORMATS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "email": r"^[^@]{1,64}@.{1,190}$",
}
# Characters that only `\\u` could write, and what stands for them in patterns: the engine would skip them.
_UNWRITABLE = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")
_UNWRITABLE_IN_PATTERNS = re.compile(r"\\(x[01]|x7[fF]|u00[01]|u007[fF]|u\{|c[A-Za-z]|0|v|a)")
# zod's e-mail addresses begin with these look-aheads, which the engine lacks; the same without them.
_NO_DOTS = r"^(?!\.)(?!.*\.\.)"
_NO_DOTS_EITHER = r"^[^.]+(\.[^.]+)*\.?$"


def parse(text: str) -> Any:
    """Return the JSON value of `text`. Raises CallerError."""
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
        return value
    except (ValueError, RecursionError):
        refuse("it is not JSON, or nests too deeply")


def prepared(schema: Any, *, lenient: bool = False) -> Schema:
    """Return `schema` for the engine. Raises CallerError for what is known to be beyond it.

    `lenient`: leave out what cannot be enforced, as in the schemas of tools, which describe rather
    than promise.
    """
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        refuse("it is not a schema that anything fits")
    rewriting = _Rewriting(schema, lenient=lenient)
    rewritten: Schema = _mapped(schema, rewriting.change)
    if not (any(map(_merges, _parts(schema))) or any("oneOf" in part for part in _parts(rewritten))):
        rewritten = _mapped(rewritten, _closed)
    rewritten["x-guidance"] = {  # the client's own is none of its schema's business
        "whitespace_pattern": r" |\n[ \t]{0,20}",  # bounded: a model could spend its answer on it
        "json_allowed_escapes": 'nrbtf\\"',  # no \\u: "\\u0061" would be a name for `a` that goes unnoticed
        "lenient": lenient,
    }
    return rewritten


def refuse(why: str) -> NoReturn:
    """Raise the error of a schema that cannot be followed."""
    raise CallerError(
        f"The JSON schema cannot be followed: {why}.",
        hint="Simplify the schema, or leave it out.",
        code="schema_unsupported",
    )


# ---- every schema within a schema --------------------------------------------------------------------


def _children(schema: Schema) -> Iterator[Any]:
    for key, value in schema.items():
        if key in _OF_NAMES and isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, list) and (key in _LISTS or key == "items"):
            yield from value
        elif key in _SINGLE:
            yield value


def _parts(schema: Any) -> Iterator[Schema]:
    """Yield `schema` and all within it."""
    if isinstance(schema, dict):
        yield schema
        for child in _children(schema):
            yield from _parts(child)


def _mapped(schema: Any, change: Callable[[Schema], Schema], depth: int = 0) -> Any:
    """Return `schema` with each schema in it, innermost first, put through `change`."""
    if depth > MAX_DEPTH:
        refuse(f"it nests deeper than {MAX_DEPTH} schemas")
    if not isinstance(schema, dict):
        return schema
    whole: Schema = {}
    for key, value in schema.items():
        if key in _OF_NAMES and isinstance(value, dict):
            whole[key] = {name: _mapped(one, change, depth + 1) for name, one in value.items()}
        elif isinstance(value, list) and (key in _LISTS or key == "items"):
            whole[key] = [_mapped(one, change, depth + 1) for one in value]
        elif key in _SINGLE:
            whole[key] = _mapped(value, change, depth + 1)
        else:
            whole[key] = value
    return change(whole)


# ---- forms that the engine lacks ---------------------------------------------------------------------


class _Rewriting:
    """Changes the schemas in one `document`."""

    def __init__(self, document: Schema, *, lenient: bool) -> None:
        self._document, self._lenient = document, lenient

    def change(self, schema: Schema) -> Schema:
        """Return `schema`, the ones within it being changed already."""
        schema = {key: value for key, value in schema.items() if key not in _IGNORED}
        for keyword, rewrite in (
            ("propertyNames", self._names),
            ("minProperties", self._counted),
            ("multipleOf", self._multiple),
            *((bound, self._bounds) for bound in _BOUNDS),
            ("const", self._constants),
            ("enum", self._constants),
            ("pattern", self._pattern),
            ("patternProperties", self._patterns),
            ("format", self._format),
            ("oneOf", self._one_of),
        ):
            if keyword in schema:
                schema = rewrite(schema)
        return schema

    def _beyond(self, schema: Schema, keyword: str, why: str) -> Schema:
        """Refuse `schema` for its `keyword`, or leave that out."""
        if not self._lenient:
            refuse(why)
        return {key: value for key, value in schema.items() if key != keyword}

    def _names(self, schema: Schema) -> Schema:
        """Say with named or patterned properties what the names of properties are to be."""
        names = self._resolved(schema["propertyNames"])
        bare = {key: value for key, value in schema.items() if key != "propertyNames"}
        if names is None or not names.keys() - _ANNOTATIONS - {"type"}:
            if names is None or names.get("type", "string") == "string":
                return bare
        elif names.get("type", "string") == "string" and not bare.keys() & _DESCRIBED:
            value, told = bare.get("additionalProperties", True), names.keys() - _ANNOTATIONS - {"type"}
            if told <= {"enum", "const"} and (words := _words(names)) is not None:
                return {**bare, "properties": dict.fromkeys(words, value), "additionalProperties": False}
            if (pattern := _pattern_of(names, told)) is not None:
                return {**bare, "patternProperties": {pattern: value}, "additionalProperties": False}
        return self._beyond(schema, "propertyNames", "its 'propertyNames' cannot be enforced")

    def _counted(self, schema: Schema) -> Schema:
        """Let properties be counted only where one name twice does not count as two."""
        least, required = schema["minProperties"], schema.get("required", [])
        if isinstance(least, int) and least <= max(1, len(required) if isinstance(required, list) else 0):
            return schema
        return self._beyond(schema, "minProperties", "'minProperties' above 1 cannot be enforced")

    def _multiple(self, schema: Schema) -> Schema:
        """Let numbers be multiples of what has few digits: the engine counts remainders."""
        value = schema["multipleOf"]
        if isinstance(value, int | float) and not isinstance(value, bool) and 1e-9 < value < 1e9:
            sign, digits, exponent = decimal.Decimal(str(value)).as_tuple()
            assert isinstance(exponent, int)
            size = int("".join(map(str, digits))) * 10 ** max(0, exponent)
            if size <= _MAX_MULTIPLE and not sign:
                return schema
        return self._beyond(schema, "multipleOf", f"its 'multipleOf' has a part above {_MAX_MULTIPLE}")

    def _bounds(self, schema: Schema) -> Schema:
        """Move bounds that no double has to the nearest one within."""
        moved = dict(schema)
        for keyword, inwards in _BOUNDS.items():
            value = schema.get(keyword)
            if isinstance(value, int) and abs(value) > _EXACT and abs(value) < 1 << 1000:
                near = float(value)
                outside = near < value if inwards > 0 else near > value
                near = math.nextafter(near, inwards) if outside else near
                moved[keyword] = int(max(near, _LEAST) if inwards > 0 else near)
        return moved

    def _constants(self, schema: Schema) -> Schema:
        if _inexact([schema.get("const"), schema.get("enum")]):
            refuse("a constant in it has control characters or too many digits")
        return schema

    def _patterns(self, schema: Schema) -> Schema:
        patterns = schema["patternProperties"]
        if isinstance(patterns, dict) and any(map(_speaks_of_control, patterns)):
            return self._beyond(schema, "patternProperties", "a pattern in it speaks of control characters")
        return schema

    def _pattern(self, schema: Schema) -> Schema:
        pattern = schema["pattern"]
        if isinstance(pattern, str) and _speaks_of_control(pattern):
            return self._beyond(schema, "pattern", "a pattern in it speaks of control characters")
        if not isinstance(pattern, str) or not pattern.startswith(_NO_DOTS):
            return schema
        rest = "^" + pattern.removeprefix(_NO_DOTS)
        return _also({**schema, "pattern": rest}, {"type": "string", "pattern": _NO_DOTS_EITHER})

    def _format(self, schema: Schema) -> Schema:
        narrow = _FORMATS.get(schema["format"]) if isinstance(schema["format"], str) else None
        if narrow is None:
            return schema
        kind = schema.get("type", "string")
        return _also(schema, {"pattern": narrow, **({"type": kind} if kind == "string" else {})})

    def _one_of(self, schema: Schema) -> Schema:
        """Write alternatives that exclude each other as any of them."""
        branches = schema["oneOf"]
        if not isinstance(branches, list) or "anyOf" in schema:
            return schema
        if not self._lenient and not _told_apart([self._resolved(one) or {} for one in branches]):
            return schema
        return {("anyOf" if key == "oneOf" else key): value for key, value in schema.items()}

    def _resolved(self, schema: Any) -> Schema | None:
        """Return the schema that `schema` stands for, if it is but a reference; None: anything goes."""
        for _ in range(MAX_DEPTH):
            if not isinstance(schema, dict) or set(schema) - _ANNOTATIONS != {"$ref"}:
                break
            schema = self._find(schema["$ref"])
        return schema if isinstance(schema, dict) else None if schema is True else {"not": {}}

    def _find(self, pointer: Any) -> Any:
        found: Any = self._document if isinstance(pointer, str) and pointer.startswith("#") else None
        for part in str(pointer).split("/")[1:]:
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
        return found


def _inexact(value: Any) -> bool:
    """Return whether `value` holds what the engine would change: numbers or characters."""
    if isinstance(value, dict):
        return any(map(_inexact, value)) or any(map(_inexact, value.values()))
    if isinstance(value, list):
        return any(map(_inexact, value))
    if isinstance(value, int | float):
        return abs(value) > _EXACT
    return isinstance(value, str) and bool(_UNWRITABLE.search(value))


def _speaks_of_control(pattern: str) -> bool:
    return bool(_UNWRITABLE.search(pattern) or _UNWRITABLE_IN_PATTERNS.search(pattern))


def _also(schema: Schema, more: Schema) -> Schema:
    present = schema.get("allOf", [])
    return {**schema, "allOf": [*present, more]} if isinstance(present, list) else schema


def _words(schema: Any) -> list[str] | None:
    """Return the strings that a schema names one by one, None if it does not."""
    if not isinstance(schema, dict):
        return None
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
        return values
    return None


def _pattern_of(names: Schema, told: set[str]) -> str | None:
    """Return a pattern for the names that `names` describes by the keywords `told`."""
    if told == {"pattern"} and isinstance(names["pattern"], str):
        return names["pattern"]
    least, most = names.get("minLength", 0), names.get("maxLength", "")
    if told <= {"minLength", "maxLength"} and isinstance(least, int) and isinstance(most, int | str):
        return f"^.{{{least},{most}}}$"
    return None


def _told_apart(branches: Sequence[Schema]) -> bool:
    """Return whether no value can follow two of `branches`: by their types, or by a tag that objects have."""
    kinds = [one.get("type") for one in branches]
    if not all(isinstance(kind, str) for kind in kinds):
        return False
    others = ["number" if kind == "integer" else kind for kind in kinds if kind != "object"]
    objects = [one for one in branches if one.get("type") == "object"]
    if len(set(others)) < len(others):
        return False
    properties = objects[0].get("properties") if objects else None
    names = list(properties) if isinstance(properties, dict) else []
    return len(objects) < 2 or any(_tags_differ(objects, name) for name in names)


def _tags_differ(objects: Sequence[Schema], name: str) -> bool:
    seen: set[str] = set()
    for one in objects:
        properties, required = one.get("properties"), one.get("required")
        words = _words(properties.get(name)) if isinstance(properties, dict) else None
        if words is None or not isinstance(required, list) or name not in required or seen & set(words):
            return False
        seen |= set(words)
    return True


# ---- objects hold what they describe -----------------------------------------------------------------


def _merges(schema: Schema) -> bool:
    """Return whether a value has to follow several descriptions of objects at once."""
    in_place = _IN_PLACE & schema.keys()
    several = len(in_place) > 1 or bool(in_place and _OF_OBJECTS & schema.keys())
    all_of = schema.get("allOf")
    return several or (isinstance(all_of, list) and len(all_of) > 1)


def _closed(schema: Schema) -> Schema:
    """Admit what a schema describes of an object or a tuple, and no more where it is silent on that."""
    properties, required = schema.get("properties"), schema.get("required", [])
    silent = not schema.keys() & {"additionalProperties", "patternProperties", "unevaluatedProperties"}
    if isinstance(properties, dict) and silent and isinstance(required, list):
        schema = {**schema, "type": schema.get("type", "object")}
        if all(isinstance(name, str) and name in properties for name in required):
            schema["additionalProperties"] = False
    for first, others in (("prefixItems", "items"), ("items", "additionalItems")):
        items = schema.get(first)
        if isinstance(items, list) and not schema.keys() & {"minItems", "maxItems", others}:
            schema = {"type": "array", **schema, "minItems": len(items), others: False}
    return schema
