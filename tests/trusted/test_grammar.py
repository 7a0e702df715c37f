"""Grammars made of JSON schemas, with llguidance as their reader and jsonschema as the judge."""

from __future__ import annotations

import contextlib
import functools
import json
import types
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp import llama_cpp as lib

from flexserve.errors import CallerError
from flexserve.protocol.call_scanner import CallScanner
from flexserve.protocol.calls import Call, CallForm, call_rules
from flexserve.trusted.engine import runtime
from flexserve.trusted.engine.vocabulary import Vocabulary
from flexserve.trusted.text.constraint import OPTIONS, answer_rule
from flexserve.trusted.text.grammar import Confinement, TokenTree

TINY = Path(__file__).parents[2] / "models" / "tiny" / "flexserve-tiny.gguf"
DEADLINE = settings(deadline=None, max_examples=60)


class Reader:
    """Grammars over the vocabulary of the tiny model, whose single bytes are tokens, too."""

    def __init__(self) -> None:
        lib.llama_log_set(runtime._silent, None)
        parameters = lib.llama_model_default_params()
        parameters.vocab_only = True
        self._model = lib.llama_model_load_from_file(str(TINY).encode(), parameters)
        address = lib.llama_model_get_vocab(self._model)
        model: Any = types.SimpleNamespace(vocabulary=address, header=types.SimpleNamespace(metadata={}))
        self.vocabulary = Vocabulary(model)
        self.tree = self.vocabulary.tree()
        self.eos = lib.llama_vocab_eos(address)

    def admits(self, grammar: str, text: str) -> bool:
        """Return whether `text`, and then the end, is what the grammar allows, cut into tokens or bytes."""
        answers = {
            self._admits(grammar, tokens)
            for tokens in (self.vocabulary.encode(text, special=False, start=False), self._bytes(text))
        }
        (answer,) = answers
        return answer

    def _admits(self, grammar: str, tokens: list[int]) -> bool:
        rules = Confinement(self.tree, grammar)
        if tokens and self.vocabulary.piece(tokens[0]) == b" ":  # this family's encoder begins with one
            tokens = tokens[1:]
        for token in tokens:
            if not rules.admits(token):
                return False
            rules.accept(token)
        return rules.admits(self.eos)

    def _bytes(self, text: str) -> list[int]:
        return [self._byte_tokens()[byte] for byte in text.encode()]

    @functools.cache  # noqa: B019 (there is one reader)
    def _byte_tokens(self) -> dict[int, int]:
        pieces = [self.vocabulary.piece(token) for token in range(self.tree.size)]
        return {piece[0]: token for token, piece in enumerate(pieces) if len(piece) == 1}

    def walk(self, grammar: str, seed: int, limit: int = 300) -> str | None:
        """Return some text that the grammar allows, at random; None when that comes to no end."""
        rng = np.random.default_rng(seed)
        rules = Confinement(self.tree, grammar)
        text = b""
        for _ in range(limit):
            token = self._chosen(rules, rng)
            if self.vocabulary.ends(token):
                return text.decode()  # and never a part of a character
            rules.accept(token)
            text += self.vocabulary.piece(token)
        return None

    def _chosen(self, rules: Confinement, rng: np.random.Generator) -> int:
        admitted = rules.admitted()
        ends = [int(token) for token in admitted if self.vocabulary.ends(int(token))]
        if ends and rng.random() < 0.3:
            return ends[0]
        closing = [int(t) for t in admitted if self.vocabulary.piece(int(t)) in (b'"', b"}", b"]", b",")]
        return int(rng.choice(closing if closing and rng.random() < 0.3 else admitted))


@functools.cache
def shared_reader() -> Reader:
    return Reader()


@pytest.fixture
def reader() -> Reader:
    return shared_reader()


def grammar(schema: Any) -> str:
    return grammar_of(answer_rule(json.dumps(schema)), "answer")


def grammar_of(rules: str, start: str) -> str:
    return f"{OPTIONS}\nstart: {start}\n{rules}\n"


def valid(schema: Any, text: str) -> bool:
    """Return whether an answer is text, JSON, and valid by `schema`."""
    text.encode()
    return jsonschema_rs.validator_for(schema, validate_formats=True).is_valid(
        json.loads(text, parse_float=_finite)
    )


def _finite(number: str) -> float:
    """JSON has larger numbers than Python, which makes them infinite."""
    return max(-1e308, min(1e308, float(number)))


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


def doubling(keyword: str, depth: int = 25) -> Any:
    """Return a schema of a thousand characters that means 2 ** depth schemas."""
    links = {f"d{i}": {keyword: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(depth)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{depth}": {"type": "object"}}}


BOMBS = {
    "alike": {"anyOf": [{"type": "array", "items": {"$ref": "#"}}] * 2},
    "eight alike": {"anyOf": [{"type": "array", "items": {"$ref": "#"}}] * 8},
    "allOf": doubling("allOf"),
    "anyOf": doubling("anyOf"),
    "oneOf": doubling("oneOf"),
    "optional": {"properties": {str(i): {"enum": [i]} for i in range(3000)}},
    "product": {"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {}}} for j in range(6)]} for i in range(8)]},
    "repeats": {"type": "string", "pattern": "^(([a-z]{1,50}){1,50}){1,50}$"},
    "backtracking": {"type": "string", "pattern": "^(a?){500}a{500}$"},
    "look-behind": {"type": "string", "pattern": "(.*a.{20}){3}"},
    "length": {"type": "string", "minLength": 10**9},
    "items": {"type": "array", "minItems": 10**9},
    "tuple": {"type": "array", "prefixItems": [{}] * 20_000},
}


@pytest.mark.parametrize("bomb", list(BOMBS))
def test_whatever_a_schema_is_a_token_takes_bounded_work(reader: Reader, bomb: str) -> None:
    """What is too much ends in an error; the counts of llguidance bound the work, not a clock."""
    with contextlib.suppress(CallerError):
        reader.walk(grammar(BOMBS[bomb]), seed=1, limit=40)


def test_alternatives_that_are_alike_cost_no_more_at_each_bracket(reader: Reader) -> None:
    """They once doubled the work of a token: 26 brackets took more than a minute."""
    assert reader.admits(grammar(BOMBS["eight alike"]), "[" * 200 + "]" * 200)


def test_no_schema_is_deep_enough_to_break_anything(reader: Reader) -> None:
    deep: Any = {"type": "string"}
    for _ in range(200):
        deep = {"type": "array", "items": deep}
    for text in (json.dumps(deep), "[" * 100_000, '{"items":' * 5000 + "1" + "}" * 5000):
        with pytest.raises(CallerError):
            Confinement(reader.tree, grammar_of(answer_rule(text), "answer"))


def test_a_long_list_of_values_is_read_letter_by_letter(reader: Reader) -> None:
    values = [f"item-{number}" for number in range(3000)] + ["item", ""]
    text = grammar({"enum": values})
    for value in ("item-0", "item-2999", "item-29", "item", ""):
        assert reader.admits(text, json.dumps(value))
    for value in ("item-3000", "item-", "i"):
        assert not reader.admits(text, json.dumps(value))


@DEADLINE
@given(st.integers(-3000, 3000), st.integers(0, 3000), st.integers(-9000, 9000))
def test_ranges_of_integers_are_exact(low: int, width: int, value: int) -> None:
    high = low + width
    text = grammar({"type": "integer", "minimum": low, "exclusiveMaximum": high + 0.5})
    for number in (value, low - 1, low, high, high + 1, 0):
        assert shared_reader().admits(text, str(number)) == (low <= number <= high)
    assert not shared_reader().admits(text, f"0{high}")
    assert shared_reader().admits(grammar({"type": "integer", "minimum": low}), str(high))


class Doubled:
    """A vocabulary in which some tokens say the same, one is a part of a character, one very long."""

    pieces = (b"", b"1", b"1", b"", b'"', b"\xe2", b"\x82\xac", b"x" * 5000, b"11", b"2", b"<tag>")

    def piece(self, token: int) -> bytes:
        return self.pieces[token]

    def ends(self, token: int) -> bool:
        return token in (0, 3)


def test_tokens_that_say_the_same_are_admitted_together() -> None:
    rules = Confinement(TokenTree(Doubled(), len(Doubled.pieces)), grammar({"enum": [1, 11]}))
    assert list(rules.admitted()) == [1, 2, 8]
    rules.accept(2)
    assert list(rules.admitted()) == [0, 1, 2, 3]
    rules.accept(1)
    assert list(rules.admitted()) == [0, 3]


def test_characters_in_pieces_come_whole() -> None:
    rules = Confinement(TokenTree(Doubled(), len(Doubled.pieces)), grammar({"const": "€"}))
    for token in (4, 5, 6, 4):
        assert list(rules.admitted()) == [token]
        rules.accept(token)
    assert list(rules.admitted()) == [0, 3]


def test_what_no_token_says_is_unsatisfiable() -> None:
    rules = Confinement(TokenTree(Doubled(), len(Doubled.pieces)), grammar({"const": "a"}))
    with pytest.raises(CallerError) as caught:
        rules.accept(4)
    assert caught.value.code == "schema_unsatisfiable"


FORMATS = ("date", "time", "date-time", "uuid", "email", "ipv4", "ipv6", "hostname", "duration", "uri")


def leaves() -> st.SearchStrategy[Any]:
    counts = st.integers(0, 4)
    return st.one_of(
        st.sampled_from(
            [{}, True, {"type": "null"}, {"type": "boolean"}, {"type": "integer"}, {"type": "number"}]
        ),
        st.builds(
            lambda a, b: {"type": "string", "minLength": min(a, b), "maxLength": max(a, b)}, counts, counts
        ),
        st.sampled_from([{"type": "string", "format": name} for name in FORMATS]),
        st.sampled_from(
            [
                {"type": "string", "pattern": "^[a-z]{2,4}$"},
                {"type": "string", "pattern": "[0-9]", "maxLength": 4},
                {"type": "number", "minimum": 0.5, "maximum": 1.5},
                {"type": "number", "multipleOf": 0.01, "exclusiveMinimum": 0},
                {"type": "integer", "multipleOf": 3, "maximum": 100},
                {"type": ["integer", "null"]},
                {"minLength": 2, "minimum": 3, "minItems": 1},
            ]
        ),
        st.builds(
            lambda v: {"enum": v}, st.lists(st.text(max_size=4) | st.integers(), min_size=1, max_size=3)
        ),
    )


@st.composite
def containers(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> Any:
    schema: Any = {}
    if draw(st.booleans()):
        low, more = draw(st.integers(0, 2)), draw(st.integers(0, 2))
        schema |= {"items": draw(inner | st.just(False)), "minItems": low, "maxItems": low + more}
        if draw(st.booleans()):
            schema["prefixItems"] = draw(st.lists(inner, min_size=1, max_size=2))
    if draw(st.booleans()):
        schema["properties"] = draw(st.dictionaries(st.text(max_size=3), inner, max_size=3))
        schema["required"] = [name for name in [*schema["properties"], "more"] if draw(st.booleans())]
        if draw(st.booleans()):
            schema["additionalProperties"] = draw(inner | st.booleans())
    for keyword in ("anyOf", "oneOf", "allOf"):
        if draw(st.integers(0, 3)) == 0:
            schema[keyword] = draw(st.lists(inner, min_size=1, max_size=3))
    if draw(st.booleans()):
        schema["type"] = draw(st.sampled_from(["array", "object", ["array", "object"], ["object", "string"]]))
    if draw(st.integers(0, 5)) == 0:
        schema |= {"propertyNames": {"pattern": "^[a-c]*$"}}
    return schema


SCHEMAS = st.recursive(leaves(), containers, max_leaves=6)


@settings(deadline=None, max_examples=200)
@given(SCHEMAS, st.integers(0, 1 << 30))
def test_whatever_a_grammar_lets_through_is_valid_by_its_schema(schema: Any, seed: int) -> None:
    try:
        text = shared_reader().walk(grammar(schema), seed)
    except CallerError:
        return
    if text is not None:
        assert valid(schema if schema != {} else {"type": "object"}, text), text


@DEADLINE
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=6),
        lambda v: (
            st.lists(v, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "type",
                        "properties",
                        "items",
                        "enum",
                        "anyOf",
                        "allOf",
                        "$ref",
                        "required",
                        "minItems",
                        "x",
                    ]
                ),
                v,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_a_grammar_or_a_refusal(value: Any) -> None:
    with contextlib.suppress(CallerError):
        Confinement(shared_reader().tree, grammar(value))


@pytest.mark.parametrize("form", list(CallForm))
def test_a_forced_call_is_one_that_the_scanner_finds(reader: Reader, form: CallForm) -> None:
    tools: list[dict[str, Any]] = [
        {
            "function": {
                "name": "look",
                "parameters": {
                    "type": "object",
                    "properties": {"n": {"type": "integer", "minimum": 3}},
                    "required": ["n"],
                },
            }
        },
        {"function": {"name": "stop"}},
    ]
    text = grammar_of(call_rules(form, tools), "call")
    found = 0
    for seed in range(20):
        answer = reader.walk(text, seed)
        if answer is None:
            continue
        scanner = CallScanner()
        (call,) = scanner.feed(answer) + scanner.finish()
        found += 1
        assert isinstance(call, Call)
        if call.name == "look":
            assert json.loads(call.arguments)["n"] >= 3
        else:
            assert call.name == "stop"
    assert found
