"""Grammars made of JSON schemas, with llama.cpp as the reader of the grammar and jsonschema as the judge."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp import llama_cpp as lib

from flexserve.core.calls import CallForm, CallScanner, call_rule
from flexserve.core.grammar import Grammar
from flexserve.core.schema import schema_grammar
from flexserve.errors import CallerError
from flexserve.secure.engine import runtime
from flexserve.secure.engine.sampler import TextGrammar

TINY = Path(__file__).parents[2] / "models" / "tiny" / "flexserve-tiny.gguf"
DEADLINE = settings(deadline=None, max_examples=60)


class Reader:
    """llama.cpp's reading of a grammar, over the vocabulary of the tiny model."""

    def __init__(self) -> None:
        lib.llama_log_set(runtime._silent, None)
        parameters = lib.llama_model_default_params()
        parameters.vocab_only = True
        self._model = lib.llama_model_load_from_file(str(TINY).encode(), parameters)
        self.vocabulary = lib.llama_model_get_vocab(self._model)
        self.size = lib.llama_vocab_n_tokens(self.vocabulary)

    def tokens(self, text: str) -> list[int]:
        data = text.encode()
        array = (lib.llama_token * (len(data) + 8))()
        count = lib.llama_tokenize(self.vocabulary, data, len(data), array, len(array), False, False)
        return list(array[:count])

    def piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(64)
        count = lib.llama_token_to_piece(self.vocabulary, token, buffer, 64, 0, False)
        return buffer.raw[:count]

    def admits(self, grammar: str, text: str) -> bool:
        """Return whether `text`, and then the end, is what the grammar allows."""
        rules = TextGrammar(self.vocabulary, grammar)
        try:
            for token in self.tokens(text):
                if not rules.admits(token):
                    return False
                rules.accept(token)
            return rules.admits(lib.llama_vocab_eos(self.vocabulary))
        finally:
            rules.close()

    def walk(self, grammar: str, seed: int, limit: int = 400) -> str | None:
        """Return some text that the grammar allows, at random; None when that has no end or is not UTF-8.

        llama.cpp's grammars let tokens through that are parts of characters that do not exist.
        """
        rng = np.random.default_rng(seed)
        rules = TextGrammar(self.vocabulary, grammar)
        text = b""
        try:
            for _ in range(limit):
                likes = rng.standard_normal(self.size).astype(np.float32)
                data = rules.best(likes).data
                token = int(data["id"][np.argmax(data["logit"])])
                if lib.llama_vocab_is_eog(self.vocabulary, token):
                    return text.decode() if _is_utf8(text) else None
                rules.accept(token)
                text += self.piece(token)
        finally:
            rules.close()
        return None


def _is_utf8(text: bytes) -> bool:
    return text.decode(errors="ignore").encode() == text


@functools.cache
def shared_reader() -> Reader:
    return Reader()


@pytest.fixture
def reader() -> Reader:
    return shared_reader()


def grammar(schema: Any) -> str:
    return schema_grammar(json.dumps(schema))


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
        ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"a\\u00e9b"'], ['"a"', '"abcd"']),
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
        {"enum": []},
        {"required": [{}], "properties": {}},
        {"required": ["a"], "properties": {}},
        {"properties": []},
        {"type": "string", "pattern": "^a+$"},
        {"type": "number", "minimum": 3},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "integer", "minimum": 10**30},
        {"type": "integer", "minimum": "3"},
        {"minimum": 3},
        {"type": "string", "minLength": 10**9},
        {"type": "string", "minLength": True},
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"type": "array", "maxItems": 1, "prefixItems": [{}, {}]},
        {"anyOf": [{}], "properties": {}},
        {"allOf": [{"type": "string"}, {"type": "object"}]},
        {"allOf": [{"$ref": "#"}]},
        {"properties": {str(i): {"enum": [i]} for i in range(3000)}},
        {"properties": {str(i): {"type": "string"} for i in range(600)}},
        {"anyOf": [{"type": "object", "properties": {str(i): {}}} for i in range(600)]},
    ],
)
def test_what_cannot_be_followed_is_refused_without_being_quoted(schema: Any) -> None:
    with pytest.raises(CallerError) as caught:
        grammar(schema)
    assert caught.value.code == "schema_unsupported"
    assert "example" not in str(caught.value)


def test_no_schema_takes_long_to_refuse() -> None:
    doubling: Any = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(25)}
    with pytest.raises(CallerError):
        grammar({"$ref": "#/$defs/d0", "$defs": {**doubling, "d25": {"type": "object"}}})
    deep: Any = {"type": "string"}
    for _ in range(200):
        deep = {"type": "array", "items": deep}
    with pytest.raises(CallerError):
        grammar(deep)
    with pytest.raises(CallerError):
        schema_grammar("[" * 100_000)


def test_a_long_list_of_values_is_read_letter_by_letter(reader: Reader) -> None:
    values = [f"item-{number}" for number in range(3000)] + ["item", ""]
    text = grammar({"enum": values})
    for value in ("item-0", "item-2999", "item-29", "item", ""):
        assert reader.admits(text, json.dumps(value))
    for value in ("item-3000", "item-", "i"):
        assert not reader.admits(text, json.dumps(value))


def test_a_schema_that_is_nothing_but_itself_is_refused(reader: Reader) -> None:
    with pytest.raises(CallerError):
        TextGrammar(reader.vocabulary, grammar({"$ref": "#"}))


@DEADLINE
@given(st.integers(-3000, 3000), st.integers(0, 3000), st.integers(-9000, 9000))
def test_ranges_of_integers_are_exact(low: int, width: int, value: int) -> None:
    high = low + width
    text = grammar({"type": "integer", "minimum": low, "exclusiveMaximum": high + 0.5})
    for number in (value, low - 1, low, high, high + 1, 0):
        assert shared_reader().admits(text, str(number)) == (low <= number <= high)
    assert not shared_reader().admits(text, f"0{high}")
    assert shared_reader().admits(grammar({"type": "integer", "minimum": low}), str(high))


def leaves() -> st.SearchStrategy[Any]:
    counts = st.integers(0, 4)
    return st.one_of(
        st.sampled_from(
            [{}, True, {"type": "null"}, {"type": "boolean"}, {"type": "integer"}, {"type": "number"}]
        ),
        st.builds(
            lambda a, b: {"type": "string", "minLength": min(a, b), "maxLength": max(a, b)}, counts, counts
        ),
        st.sampled_from([{"type": "string", "format": name} for name in ("date", "uuid")]),
        st.builds(
            lambda v: {"enum": v}, st.lists(st.text(max_size=4) | st.integers(), min_size=1, max_size=3)
        ),
    )


@st.composite
def containers(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> Any:
    match draw(st.integers(0, 2)):
        case 0:
            low, more = draw(st.integers(0, 2)), draw(st.integers(0, 2))
            return {"type": "array", "items": draw(inner), "minItems": low, "maxItems": low + more}
        case 1:
            return {"anyOf": draw(st.lists(inner, min_size=1, max_size=3))}
        case _:
            properties = draw(st.dictionaries(st.text(max_size=4), inner, max_size=3))
            required = [name for name in properties if draw(st.booleans())]
            return {
                "type": "object",
                "properties": properties,
                "required": required,
                "additionalProperties": False,
            }


SCHEMAS = st.recursive(leaves(), containers, max_leaves=6)


@DEADLINE
@given(SCHEMAS, st.integers(0, 1 << 30))
def test_whatever_a_grammar_lets_through_is_valid_by_its_schema(schema: Any, seed: int) -> None:
    text = shared_reader().walk(grammar(schema), seed)
    if text is not None:
        jsonschema_rs.validate(schema if schema != {} else {"type": "object"}, json.loads(text))


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
        grammar(value)


@pytest.mark.parametrize("form", list(CallForm))
def test_a_forced_call_is_one_that_the_scanner_finds(reader: Reader, form: CallForm) -> None:
    tools = [
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
    rules = Grammar()
    text = rules.text(call_rule(rules, form, tools))
    found = 0
    for seed in range(20):
        answer = reader.walk(text, seed)
        if answer is None:
            continue
        scanner = CallScanner()
        (call,) = scanner.feed(answer) + scanner.finish()
        found += 1
        assert not isinstance(call, str)
        if call.name == "look":
            assert isinstance(json.loads(call.arguments)["n"], int)
        else:
            assert call.name == "stop"
    assert found
