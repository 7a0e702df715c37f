"""Grammars made of JSON schemas, with llguidance as their reader and jsonschema as the judge."""

from __future__ import annotations

import json
from typing import Any

import pytest
from grammars import Reader, grammar, grammar_of, valid

from flexserve.errors import CallerError
from flexserve.protocol.answer_parts import Arguments, CallBegun
from flexserve.protocol.answer_reader import AnswerReader
from flexserve.protocol.notation import BARE, HERMES, Notation
from flexserve.testing.notations import NOTATIONS
from flexserve.trusted.text.call_rules import call_rules
from flexserve.trusted.text.grammar import Confinement

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"enum": ['a"\\é\n', 1, None]},
    },
    "required": ["name"],
}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (
            {},
            ["{}", '{"a": [1, -2.5e3, null, "x\\n"]}', '{\n  "a": true\n}'],
            ["[]", "1", '{"a": 01}', '{"a": "\n"}', "{} "],
        ),
        (
            PERSON,
            ['{"name": "x"}', '{"name":"é","age":3}', '{"name":"","tags":"a\\"\\\\é\\n"}'],
            ["{}", '{"age":3}', '{"name":"x","other":1}', '{"name":"x",}'],
        ),
        (
            {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
            ["[true]", "[true, false,true]"],
            ["[]", "[true,true,true,true]", "[1]"],
        ),
        (
            {"type": "array", "prefixItems": [{"type": "integer"}, {"const": "x"}]},
            ['[1,"x"]'],
            ["[1]", '[1,"x",2]', "[]"],
        ),
        ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
        (
            {"type": "string", "minLength": 2, "maxLength": 3},
            ['"ab"', '"aéb"', '"\\n\\""'],
            ['"a"', '"abcd"'],
        ),
        (
            {"type": "string", "format": "date-time"},
            ['"2026-01-31T23:59:59Z"'],
            ['"2026-13-01T00:00:00Z"', '"x"'],
        ),
        ({"type": ["integer", "null"]}, ["-12", "null", "0"], ["1.5", "x", "00"]),
        ({"anyOf": [{"type": "number"}, {"enum": ["a", "b"]}]}, ["1.5", '"b"'], ['"c"', "true"]),
        (
            {"type": "object", "additionalProperties": {"type": "integer"}},
            ["{}", '{"a":1,"b":2}'],
            ['{"a":"x"}'],
        ),
        (
            {"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": True},
            ['{"b":[]}', '{"a":1,"c":2}'],
            ['{"a":2'],
        ),
        (
            {
                "allOf": [{"$ref": "#/$defs/a"}, {"properties": {"y": {"const": 2}}, "required": ["y"]}],
                "$defs": {"a": {"properties": {"x": {"const": 1}}, "required": ["x"]}},
            },
            ['{"x":1,"y":2}'],
            ['{"x":1}', '{"y":2}'],
        ),
        (
            {
                "$ref": "#/$defs/tree",
                "$defs": {
                    "tree": {
                        "type": "object",
                        "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
                    }
                },
            },
            ["{}", '{"kids":[{},{"kids":[]}]}'],
            ['{"kids":[1]}'],
        ),
        ({"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"const": "日本🔑"}}}, ['"日本🔑"'], ['"日本"']),
    ],
)
def test_a_grammar_admits_what_its_schema_does(
    reader: Reader, schema: Any, good: list[str], bad: list[str]
) -> None:
    text = grammar(schema)
    for answer in good:
        assert reader.admits(text, answer), answer
    for answer in bad:
        assert not reader.admits(text, answer), answer


# As clients have sent them: each keyword beside those that once made it go unnoticed.
@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (
            {"type": "array", "prefixItems": [{"type": "integer"}] * 2, "items": False},
            ["[1,2]", "[1]", "[]"],
            ["[1,2,3]"],
        ),
        ({"type": "array", "items": False}, ["[]"], ["[1]"]),
        ({"type": "object", "required": ["x"]}, ['{"x":1}', '{"x":1,"y":2}'], ["{}", '{"y":1}']),
        (
            {"type": "array", "minItems": 2, "anyOf": [{"type": "array"}, {"type": "object"}]},
            ["[1,2]"],
            ["[]", "[1]", "{}"],
        ),
        (
            {"required": ["x"], "anyOf": [{"type": "object", "properties": {"x": {"type": "null"}}}]},
            ['{"x":null}', '{"x":null,"y":1}'],
            ["{}", '{"x":1}'],
        ),
        (
            {"$ref": "#/$defs/s", "maxLength": 3, "$defs": {"s": {"type": "string", "minLength": 2}}},
            ['"ab"', '"abc"'],
            ['"a"', '"abcd"', "1"],
        ),
        (
            {"type": "string", "format": "date", "minLength": 1},
            ['"2024-02-29"', '"2026-12-31"'],
            ['"x"', '""', '"2023-02-29"', '"2026-04-31"', '"0000-01-01x"'],
        ),
        ({"type": "string"}, ['"🔑"', '"\\n"'], ['"\\ud83d"', '"\\ude00"', '"\\x"']),
        (
            {"properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
            ['{"a":1}', '{"b":"x"}', '{"a":1,"b":"x"}'],
            ['{"a":"x"}', '{"b":"x","a":"y"}', '{"\\u0061":"x"}'],
        ),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "integer"}},
                "required": ["a"],
                "additionalProperties": True,
            },
            ['{"a":1}', '{"a":1,"b":"x"}'],
            ['{"a":1,"a":"x"}', '{"a":1,"a":2}', '{"b":1}'],
        ),
        ({"type": "number", "minimum": -0.5, "exclusiveMaximum": 3}, ["-0.5", "0", "2.99"], ["-0.51", "3"]),
        ({"type": "number", "multipleOf": 0.25, "minimum": 0}, ["0.50", "1", "1.75"], ["0.3", "-1"]),
        ({"type": "integer", "multipleOf": 7}, ["0", "14", "-7"], ["1", "15"]),
        ({"type": "string", "pattern": "^[a-c]+[0-9]{2}$"}, ['"abc12"'], ['"abc1"', '"d12"', '""']),
        ({"type": "string", "pattern": "b"}, ['"abc"'], ['"ac"']),
        ({"type": "string", "minLength": 1, "maxLength": 5000}, ['"x"', f'"{"y" * 5000}"'], ['""']),
        (
            {
                "type": "object",
                "patternProperties": {"^x-": {"type": "integer"}},
                "additionalProperties": False,
            },
            ['{"x-a":1}', "{}"],
            ['{"x-a":"1"}', '{"a":1}'],
        ),
        (
            {
                "type": "object",
                "propertyNames": {"type": "string"},
                "additionalProperties": {"type": "number"},
            },
            ['{"a":1.5}'],
            ['{"a":"x"}'],
        ),
        (
            {
                "type": "object",
                "propertyNames": {"enum": ["a", "b"]},
                "additionalProperties": {"type": "null"},
            },
            ['{"a":null,"b":null}', '{"b":null}'],
            ['{"c":null}', '{"a":1}'],
        ),
        (
            {"type": "object", "propertyNames": {"pattern": "^[a-z]+$", "type": "string"}},
            ['{"ab":1}'],
            ['{"A":1}'],
        ),
        (
            {"type": "object", "propertyNames": {"minLength": 2, "maxLength": 3}},
            ['{"ab":1}'],
            ['{"a":1}', '{"abcd":1}'],
        ),
        (  # pydantic's union with a discriminator
            {
                "$defs": {
                    name: {
                        "type": "object",
                        "properties": {"kind": {"const": name, "type": "string"}, name: {"type": "integer"}},
                        "required": ["kind", name],
                    }
                    for name in ("cat", "dog")
                },
                "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/cat"}},
                "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
            },
            ['{"kind":"cat","cat":1}', '{"kind":"dog","dog":1}'],
            ['{"kind":"cat","dog":1}', '{"kind":"cow"}', '{"kind":"cat","cat":1,"dog":2}'],
        ),
        (
            {"oneOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]},
            ['"x"', "1", "null"],
            ["1.5", "true"],
        ),
        (  # zod's e-mail address
            {
                "type": "string",
                "format": "email",
                "pattern": r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]"
                r"@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$",
            },
            ['"a.b@example.org"'],
            ['".a@example.org"', '"a..b@example.org"', '"x"'],
        ),
        (  # int64 is not a double
            {"type": "integer", "maximum": 9223372036854775807, "minimum": -(2**63)},
            ["9223372036854774784", "-9223372036854774784"],
            ["9223372036854775808", "-9223372036854775809"],
        ),
        (  # zod's safe integers
            {"type": "integer", "exclusiveMinimum": 0, "maximum": 9007199254740991},
            ["1", "9007199254740991"],
            ["0", "9007199254740992"],
        ),
    ],
)
def test_no_keyword_is_dropped(reader: Reader, schema: Any, good: list[str], bad: list[str]) -> None:
    text = grammar(schema)
    for answer in good:
        assert valid(schema, answer), answer
        assert reader.admits(text, answer), answer
    for answer in bad:
        assert not reader.admits(text, answer), answer


def test_objects_are_open_where_several_descriptions_of_one_meet(reader: Reader) -> None:
    parts = [{"properties": {name: {"type": "null"}}, "required": [name]} for name in "ab"]
    text = grammar({"type": "object", "allOf": parts})
    assert reader.admits(text, '{"a":null,"b":null}')
    assert not reader.admits(text, '{"a":null}')


@pytest.mark.parametrize(
    "schema",
    [
        False,
        [],
        "x",
        {"type": "cat"},
        {"type": {}},
        {"$ref": "https://example.org/schema.json"},
        {"$ref": "#/nowhere"},
        {"$ref": 3},
        {"$ref": "#"},
        {"enum": []},
        {"required": [{}], "properties": {}},
        {"type": "object", "required": ["a"], "properties": {}, "additionalProperties": False},
        {"properties": []},
        {"type": "string", "pattern": "a(?=b)"},
        {"type": "string", "pattern": "("},
        {"type": "string", "format": "colour"},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "integer", "minimum": "3"},
        {"type": "number", "multipleOf": 0.00123457},
        {"type": "integer", "multipleOf": 1234567},
        {"type": "string", "minLength": -1},
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"type": "array", "uniqueItems": True, "items": {"type": "integer"}},
        {"type": "array", "contains": {"type": "integer"}},
        {"not": {"type": "string"}},
        {"if": {"type": "string"}, "then": {"minLength": 1}},
        {"type": "object", "dependentRequired": {"a": ["b"]}},
        {"type": "object", "unevaluatedProperties": False},
        {"type": "object", "minProperties": 2},
        {"type": "object", "propertyNames": {"not": {}}},
        {"type": "object", "properties": {"a": {}}, "propertyNames": {"pattern": "^b"}},
        {"oneOf": [{"type": "object", "properties": {"a": {}}}, {"type": "object", "properties": {"b": {}}}]},
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        {"allOf": [{"type": "string"}, {"type": "object"}]},
        {"allOf": [{"$ref": "#"}]},
        {"const": "\x07"},
        {"const": 9007199254740993},
        {"enum": [{"a\x7f": 1}]},
        {"type": "string", "pattern": r"^a\x07b$"},
        {"type": "object", "patternProperties": {r"^\u0001": {}}},
        {"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True},
    ],
)
def test_what_cannot_be_followed_is_refused_without_being_quoted(reader: Reader, schema: Any) -> None:
    with pytest.raises(CallerError) as caught:
        Confinement(reader.tree, grammar(schema))
    assert caught.value.code == "schema_unsupported"
    assert not {"example", "nowhere", "colour", "cat"} & set(str(caught.value).replace("'", " ").split())


def test_what_is_refused_is_named(reader: Reader) -> None:
    with pytest.raises(CallerError, match="'uniqueItems' cannot be enforced"):
        Confinement(reader.tree, grammar({"type": "array", "uniqueItems": True}))


def test_a_long_list_of_values_is_read_letter_by_letter(reader: Reader) -> None:
    values = [f"item-{number}" for number in range(3000)] + ["item", ""]
    text = grammar({"enum": values})
    for value in ("item-0", "item-2999", "item-29", "item", ""):
        assert reader.admits(text, json.dumps(value))
    for value in ("item-3000", "item-", "i"):
        assert not reader.admits(text, json.dumps(value))


CALLED: list[dict[str, Any]] = [
    {
        "function": {
            "name": "look",
            "parameters": {
                "type": "object",
                "properties": {
                    "n": {"type": "integer", "minimum": 3},
                    "s": {"type": "string", "maxLength": 8},
                    "e": {"enum": ["a", "b"], "type": "string"},
                },
                "required": ["n"],
            },
        }
    },
    {"function": {"name": "stop"}},
    {"function": {"name": "any", "parameters": {"type": "object", "properties": {"b": {"type": "boolean"}}}}},
]


@pytest.mark.parametrize("notation", [*NOTATIONS, Notation(calls=BARE)])
def test_a_forced_call_is_one_that_the_reader_finds(reader: Reader, notation: Notation) -> None:
    calls = None if notation.harmony else notation.calls or HERMES
    begun = ">>>" if calls is not None and calls.open == ">>>" else ""
    text = grammar_of(call_rules(calls, CALLED, begun=begun), "call")
    schemas = {
        one["function"]["name"]: one["function"].get("parameters", {}).get("properties", {}) for one in CALLED
    }
    found = set()
    for seed in range(30):
        answer = reader.walk(text, seed)
        if answer is None:
            continue
        parts_of = AnswerReader(notation, begun, schemas)
        call, *rest = parts_of.feed(answer) + parts_of.finish()
        assert isinstance(call, CallBegun)
        assert all(isinstance(one, Arguments) for one in rest)
        arguments = json.loads("".join(one.text for one in rest if isinstance(one, Arguments)))
        found.add(call.name)
        if call.name == "look":
            assert arguments["n"] >= 3
            assert isinstance(arguments.get("s", ""), str)
            assert arguments.get("e", "a") in ("a", "b")
    assert found
