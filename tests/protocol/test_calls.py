"""Calls of tools in streamed text: found whole, wherever it is cut; all else comes out as it was."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexserve.protocol.call_scanner import MAX_FAILURES, CallScanner
from flexserve.protocol.calls import OPENING, Call, CallForm, form_of

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


def scan(text: str, cuts: list[int], *, thinking: bool = False) -> tuple[str, list[Call]]:
    scanner = CallScanner(thinking=thinking)
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
        "Example: <tool_call> is a tag.",
        "call <tool_call>maybe</tool_call>  or not",
        " <tool_call> {broken} </tool_call> ",
        '<tool_call>{"name": "x", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "x", "arguments": "[1]"}</tool_call>',
        '<tool_call>{"name": "x", "arguments": "no json"}</tool_call>',
        "{" * 50,
    ],
)
def test_what_only_looks_like_a_call_stays_text(text: str) -> None:
    assert scan(text, [7]) == (text, [])


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ('{"name": "x", "arguments": "{\\"n\\": 1}"}', '{"n": 1}'),
        ('{"name": "x", "arguments": ""}', "{}"),
        ('{"name": "x", "arguments": null}', "{}"),
        ('{"name": "x"}', "{}"),
        ('{"name": "x", "arguments": {"code": "a\nb\tc"}}', '{"code": "a\\nb\\tc"}'),
        ('{"name": "x", "arguments": {"a": "</tool_call>"}}', '{"a": "</tool_call>"}'),
    ],
)
def test_calls_are_taken_as_models_write_them(written: str, arguments: str) -> None:
    text = f"<tool_call>\n{written}\n</tool_call> and\nmore"
    for cut in (1, 5, 1000):
        assert scan(text, [cut]) == ("and\nmore", [Call("x", arguments)])


@given(CUTS)
def test_what_stands_in_a_thought_is_no_call(cuts: list[int]) -> None:
    call = '<tool_call>\n{"name": "x", "arguments": {}}\n</tool_call>'
    thought = f" I might say {call}. </think>"
    assert scan(f"<think>{thought}\n\n{call}", cuts) == (f"<think>{thought}", [Call("x", "{}")])
    assert scan(f"{thought}\n\n{call}", cuts, thinking=True) == (thought, [Call("x", "{}")])
    assert scan(f"<think> never ended {call}", cuts) == (f"<think> never ended {call}", [])
    bare = '{"name": "x", "parameters": {}}'
    assert scan(f"<think>{bare}</think>\n{bare}", cuts) == (f"<think>{bare}</think>", [Call("x", "{}")])


@given(CUTS)
def test_a_tag_that_is_only_mentioned_hides_no_call_behind_it(cuts: list[int]) -> None:
    call = '<tool_call>{"name": "x", "arguments": {}}</tool_call>'
    assert scan(f"By <tool_call> I call: {call}", cuts) == ("By <tool_call> I call:", [Call("x", "{}")])


def test_after_many_tags_without_a_call_the_rest_is_text() -> None:
    call = '<tool_call>{"name": "x", "arguments": {}}</tool_call>'
    broken = "<tool_call>{broken}</tool_call>" * MAX_FAILURES
    assert scan(broken + call, [50]) == (broken + call, [])


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
