"""Rules of a forced call: they can be compiled in every notation, and say what the tools say."""

from __future__ import annotations

from typing import Any

import pytest
from grammars import shared_reader

from flexserve.protocol.answer_parts import CallBegun, Said
from flexserve.protocol.answer_reader import AnswerReader
from flexserve.protocol.notation import BARE, HERMES, CallNotation, Notation, Style
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


SEVERAL = [one for one in NOTATIONS if one.calls is not None and one.calls.writes_several]


@pytest.mark.parametrize("notation", [*SEVERAL, Notation(calls=HERMES), Notation(calls=BARE)])
def test_several_calls_may_be_forced_and_all_that_is_admitted_is_read_as_calls(notation: Notation) -> None:
    assert notation.calls is not None
    nothing = {"type": "object", "additionalProperties": False}
    tools = [{"function": {"name": name, "parameters": nothing}} for name in ("stop", "wait")]
    counts = set()
    for several in (False, True):
        rules = call_rules(notation.calls, tools, several=several)
        for seed in range(12):
            text = shared_reader().walk(f"{OPTIONS}\n{rules}\nstart: call\n", seed, 600)
            if text is not None:
                counts.add((several, len(calls_in(notation, text))))
    assert {count for several, count in counts if not several} == {1}
    assert max(count for several, count in counts if several) > 1


def calls_in(notation: Notation, text: str) -> list[str]:
    """Return the names of the calls that `text` consists of."""
    reader = AnswerReader(notation, "", {"stop": {}, "wait": {}})
    found = [*reader.feed(text), *reader.finish()]
    assert not [part for part in found if isinstance(part, Said)]
    return [part.name for part in found if isinstance(part, CallBegun)]


def test_what_the_prompt_has_already_is_not_written_again_nor_what_ends_the_answer() -> None:
    calls = CallNotation(Style.NAMED, open=">>>", middle="\n", close="</f><|end|>\n")
    rules = call_rules(calls, TOOLS, begun=">>>", endings=["<|end|>"])
    assert ">>>" not in rules
    assert "<|end|>" not in rules
    assert "</f>" in rules
