"""Calls of tools in streamed text: found whole, wherever it is cut; all else comes out as it was."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexserve.core.calls import OPENING, Call, CallForm, CallScanner, form_of

NAME = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=8)
VALUES = st.dictionaries(NAME, st.integers() | NAME | st.none(), max_size=3)
CALLS = st.tuples(NAME, VALUES)


def pieces(text: str, cuts: list[int]) -> list[str]:
    """Return `text` cut into pieces of the given lengths, over and over."""
    parts, at, turn = [], 0, 0
    while at < len(text):
        length = cuts[turn % len(cuts)]
        parts.append(text[at : at + length])
        at, turn = at + length, turn + 1
    return parts


def scan(text: str, cuts: list[int]) -> tuple[str, list[Call]]:
    scanner = CallScanner()
    found = [one for piece in pieces(text, cuts) for one in scanner.feed(piece)] + scanner.finish()
    text = "".join(one for one in found if isinstance(one, str))
    return text, [one for one in found if isinstance(one, Call)]


CUTS = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def expected(calls: list[tuple[str, dict[str, object]]]) -> list[Call]:
    return [Call(name, json.dumps(values, ensure_ascii=False)) for name, values in calls]


@given(st.lists(CALLS, min_size=1, max_size=3), CUTS)
def test_tagged_calls_are_found_however_the_text_is_cut(
    calls: list[tuple[str, dict[str, object]]], cuts: list[int]
) -> None:
    text = "I will look.\n" + "\n".join(
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': values})}\n</tool_call>"
        for name, values in calls
    )
    assert scan(text, cuts) == ("I will look.", expected(calls))


@given(st.lists(CALLS, min_size=1, max_size=3), CUTS)
def test_bare_calls_are_found_however_the_text_is_cut(
    calls: list[tuple[str, dict[str, object]]], cuts: list[int]
) -> None:
    text = "; ".join(json.dumps({"name": name, "parameters": values}) for name, values in calls)
    assert scan(text, cuts) == ("", expected(calls))


@given(st.text(max_size=60), CUTS)
def test_text_without_a_call_comes_out_unchanged(text: str, cuts: list[int]) -> None:
    assert scan(text, cuts) == (text, [])


@pytest.mark.parametrize(
    "text",
    [
        "a <tool_cal",
        '{"name": "x"}',
        '{"name": 3, "parameters": {}}',
        '{"name": "x", "parameters": [1]}',
        '{"a": 1}',
        '{"name": "x", "parameters": {}} and more',
        "<tool_call>no json</tool_call>",
        "<tool_call>" + "[" * 100_000,
        "{" * 50,
    ],
)
def test_what_only_looks_like_a_call_stays_text(text: str) -> None:
    assert scan(text, [7]) == (text, [])


def test_a_call_whose_end_the_model_forgot_counts() -> None:
    assert scan('<tool_call>{"name": "x", "arguments": {"a": 1}}', [5]) == ("", [Call("x", '{"a": 1}')])


def test_text_is_let_out_as_soon_as_it_cannot_become_a_call() -> None:
    scanner = CallScanner()
    assert scanner.feed("Hello <tool") == ["Hello"]
    assert scanner.feed(" box") == [" <tool box"]
    assert scanner.feed(f" and {OPENING}") == [" and"]


def test_the_form_of_calls_is_read_from_the_template() -> None:
    assert form_of("… <tool_call> …") is CallForm.TAGGED
    assert form_of("""{{ '{"name": "' + call.name + '", "parameters": ' }}""") is CallForm.BARE
    assert form_of("<tool_call><function=name>") is None
    assert form_of("plain") is None
