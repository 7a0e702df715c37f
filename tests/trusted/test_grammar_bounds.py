"""Schemas that mean too much: each is refused, or costs a bounded amount of work at each token."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from grammars import Reader, grammar, grammar_of

from flexserve.errors import CallerError
from flexserve.trusted.text.constraint import answer_rule
from flexserve.trusted.text.grammar import Confinement


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
