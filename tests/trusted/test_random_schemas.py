"""Schemas at random: what a grammar lets through is valid by its schema, and any JSON is one or a refusal."""

from __future__ import annotations

import contextlib
from typing import Any

from grammars import grammar, shared_reader, valid
from hypothesis import given, settings
from hypothesis import strategies as st

from flexserve.errors import CallerError
from flexserve.trusted.text.grammar import Confinement

DEADLINE = settings(deadline=None, max_examples=60)


@DEADLINE
@given(st.integers(-3000, 3000), st.integers(0, 3000), st.integers(-9000, 9000))
def test_ranges_of_integers_are_exact(low: int, width: int, value: int) -> None:
    high = low + width
    text = grammar({"type": "integer", "minimum": low, "exclusiveMaximum": high + 0.5})
    for number in (value, low - 1, low, high, high + 1, 0):
        assert shared_reader().admits(text, str(number)) == (low <= number <= high)
    assert not shared_reader().admits(text, f"0{high}")
    assert shared_reader().admits(grammar({"type": "integer", "minimum": low}), str(high))


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
