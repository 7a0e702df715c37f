"""Rules of a forced call: they can be compiled in every notation, and say what the tools say."""

from __future__ import annotations

from typing import Any

import pytest

from flexserve.protocol.notation import BARE, CallNotation, Notation, Style
from flexserve.testing.notations import NOTATIONS
from flexserve.trusted.text.call_rules import call_rules
from flexserve.trusted.text.constraint import OPTIONS
from flexserve.trusted.text.rendering.compiling import compile_error

TOOLS: list[dict[str, Any]] = [
    {
        "function": {
            "name": "look",
            "parameters": {
                "type": "object",
                "$defs": {"N": {"type": "integer"}},
                "properties": {
                    "n": {"$ref": "#/$defs/N"},
                    "s": {"type": "string"},
                    "e": {"type": "string", "enum": ["a/b", 'c"']},
                },
                "required": ["n", "s"],
            },
        }
    },
    {"function": {"name": "stop"}},
    {"function": {"name": "any", "parameters": {"type": "object", "properties": {"b": {}, "c": {}}}}},
]


@pytest.mark.parametrize("notation", [*NOTATIONS, Notation(calls=BARE)])
def test_a_call_can_be_forced_in_every_notation(notation: Notation) -> None:
    rules = call_rules(None if notation.harmony else notation.calls or BARE, TOOLS)
    assert compile_error(f"{OPTIONS}\n{rules}\nstart: call\n") == ""
    assert all(name in rules for name in ("look", "stop", "any"))


def test_what_the_prompt_has_already_is_not_written_again_nor_what_ends_the_answer() -> None:
    calls = CallNotation(Style.NAMED, open=">>>", middle="\n", close="</f><|end|>\n")
    rules = call_rules(calls, TOOLS, begun=">>>", endings=["<|end|>"])
    assert ">>>" not in rules
    assert "<|end|>" not in rules
    assert "</f>" in rules
