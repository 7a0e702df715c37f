"""The parts of an answer: found whole in every notation, wherever the text is cut; all else stays text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexserve.protocol.answer_parts import Arguments, CallBegun, Part, Said, Thought, joined
from flexserve.protocol.answer_reader import MAX_FAILURES, AnswerReader
from flexserve.protocol.notation import ANY, HERMES, CallNotation, Notation, Style
from flexserve.testing.notations import CALL, HARMONY, KIMI, MISTRAL, NOTATIONS, PLAIN, TOOLS, WHOLE


def pieces(text: str, cuts: list[int]) -> list[str]:
    """Return `text` cut into pieces of the given lengths, over and over."""
    parts, at, turn = [], 0, 0
    while at < len(text):
        length = cuts[turn % len(cuts)]
        parts.append(text[at : at + length])
        at, turn = at + length, turn + 1
    return parts


def read(
    notation: Notation, text: str, cuts: list[int], *, begun: str = "", tools: Any = TOOLS
) -> list[Part]:
    reader = AnswerReader(notation, begun, tools)
    found = [part for piece in pieces(text, cuts) for part in reader.feed(piece)]
    return joined(found + reader.finish())


def summed(parts: list[Part]) -> tuple[str, str, list[tuple[str, str]]]:
    """Return what is said, what is thought, and the calls with their arguments as text."""
    said = "".join(part.text for part in parts if isinstance(part, Said))
    thought = "".join(part.text for part in parts if isinstance(part, Thought))
    calls: list[tuple[str, str]] = []
    for part in parts:
        if isinstance(part, CallBegun):
            calls.append((part.name, ""))
        elif isinstance(part, Arguments):
            calls[-1] = calls[-1][0], calls[-1][1] + part.text
    return said, thought, calls


def without_ids(parts: list[Part]) -> list[Any]:
    return [part.name if isinstance(part, CallBegun) else part for part in parts]


CUTS = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@pytest.mark.parametrize(("notation", "text", "said", "thought", "calls"), WHOLE)
def test_the_parts_are_found_however_the_text_is_cut(
    notation: Notation, text: str, said: str, thought: str, calls: list[tuple[str, dict[str, Any]]]
) -> None:
    for cuts in ([len(text)], [1], [2], [3, 1], [7], [5, 2, 11]):
        found = summed(read(notation, text, cuts))
        assert found[:2] == (said, thought)
        assert [(name, json.loads(arguments)) for name, arguments in found[2]] == calls


MARKS = sorted(
    {mark for notation in NOTATIONS for mark in notation.marks}
    | {
        "{",
        "}",
        '"name": "f"',
        '"arguments": {',
        ", ",
        ":",
        "f",
        "[",
        "]",
        "(",
        ")",
        "=",
        "\\",
        '"',
        "\n",
        "x",
        ANY,
    }
)
SCRAPS = st.lists(st.sampled_from(MARKS) | st.sampled_from([row[1] for row in WHOLE]), max_size=12).map(
    "".join
)
ANYTHING = SCRAPS | st.text(max_size=60)


@given(st.sampled_from(NOTATIONS), ANYTHING, CUTS, st.booleans())
def test_any_text_is_read_without_an_error_and_the_same_in_every_split(
    notation: Notation, text: str, cuts: list[int], begins: bool
) -> None:
    begun = notation.thought_open if begins else ""
    whole = read(notation, text, [len(text) or 1], begun=begun)
    assert without_ids(read(notation, text, cuts, begun=begun)) == without_ids(whole)
    read(notation, text, cuts, begun=begun, tools=None)


MARK = st.sampled_from(["", " ", "<a>", "\n<b>\n", "[", "{", ANY, ">>"])


@given(
    st.builds(
        CallNotation,
        *[
            st.sampled_from(Style),
            *[MARK] * 6,
            st.sampled_from(["", "name"]),
            st.just("arguments"),
            st.booleans(),
        ],
        *[MARK] * 4,
    ),
    ANYTHING,
    CUTS,
)
def test_no_notation_whatever_a_template_makes_of_it_breaks_the_reader(
    calls: CallNotation, text: str, cuts: list[int]
) -> None:
    read(Notation(calls=calls, dropped=[calls.quote]), text, cuts)


@given(st.text(max_size=60), CUTS)
def test_text_without_a_mark_comes_out_unchanged(text: str, cuts: list[int]) -> None:
    assert summed(read(PLAIN, text, cuts)) == (text, "", [])


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
        '<tool_call>{"name": "not a name", "arguments": {}}</tool_call>',
        "{" * 50,
        "a <think> b",
    ],
)
def test_what_only_looks_like_a_call_or_a_thought_stays_text(text: str) -> None:
    assert summed(read(PLAIN, text, [7])) == (text, "", [])


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ('{"name": "x", "arguments": "{\\"n\\": 1}"}', {"n": 1}),
        ('{"name": "x", "arguments": ""}', {}),
        ('{"name": "x", "arguments": null}', {}),
        ('{"name": "x"}', {}),
        ('{"arguments": {"n": 1}, "name": "x"}', {"n": 1}),
        ('{"type": "function", "function": {"name": "x", "arguments": {"n": 1}}}', {"n": 1}),
        ('{"name": "x", "arguments": {"code": "a\nb\tc"}}', {"code": "a\nb\tc"}),
        ('{"name": "x", "arguments": {"a": "</tool_call>"}}', {"a": "</tool_call>"}),
    ],
)
def test_calls_are_taken_as_models_write_them(written: str, arguments: dict[str, Any]) -> None:
    text = f"<tool_call>\n{written}\n</tool_call> and\nmore"
    for cut in (1, 5, 1000):
        said, _, calls = summed(read(PLAIN, text, [cut]))
        assert said == "and\nmore"
        assert [(name, json.loads(found)) for name, found in calls] == [("x", arguments)]


def test_arguments_come_as_the_model_writes_them() -> None:
    reader = AnswerReader(PLAIN, "", TOOLS)
    reader.feed('<tool_call>{"name": "f", "argu')
    begun = reader.feed('ments": {"s": "a')
    assert [type(part) for part in begun] == [CallBegun, Arguments]
    assert reader.feed("b c") == [Arguments("b c")]
    assert reader.feed('"}}</tool_call> x') == [Arguments('"}'), Said("x")]


def test_thoughts_come_as_the_model_writes_them() -> None:
    reader = AnswerReader(PLAIN, "<think>\n")
    assert reader.feed("one ") == [Thought("one")]
    assert reader.feed("two </thi") == [Thought(" two")]
    assert reader.feed("nk>\n\nthree") == [Said("three")]


def test_a_call_has_an_id_that_strict_templates_take_and_kimis_has_the_models_own() -> None:
    ids = [part.id for part in read(PLAIN, CALL * 2, [3]) if isinstance(part, CallBegun)]
    assert len(set(ids)) == 2
    assert all(len(one) == 9 and one.isalnum() for one in ids)
    [kimi] = [
        part for part in read(KIMI, "<|call|>functions.f:3<|argument|>{}", [4]) if isinstance(part, CallBegun)
    ]
    assert (kimi.id, kimi.name) == ("functions.f:3", "f")
    [own] = [
        part
        for part in read(MISTRAL, "[TOOL_CALLS]f[CALL_ID]abc123XYZ[ARGS]{}", [4])
        if isinstance(part, CallBegun)
    ]
    assert own.id == "abc123XYZ"


def test_without_tools_nothing_is_a_call() -> None:
    assert summed(read(PLAIN, f"a {CALL}", [5], tools=None)) == (f"a {CALL}", "", [])
    text = "<|channel|>commentary to=functions.f<|message|>{}"
    assert summed(read(HARMONY, text, [5], tools=None)) == ("{}", "", [])


@given(CUTS)
def test_a_mark_that_is_only_mentioned_hides_no_call_behind_it(cuts: list[int]) -> None:
    assert summed(read(PLAIN, f"By <tool_call> I call: {CALL}", cuts)) == (
        "By <tool_call> I call:",
        "",
        [("f", '{"x": 1}')],
    )


def test_after_many_marks_without_a_call_the_rest_is_text() -> None:
    broken = "<tool_call>{broken}</tool_call>" * MAX_FAILURES
    assert summed(read(PLAIN, broken + CALL, [50])) == (broken + CALL, "", [])


def test_a_call_whose_end_is_missing_counts() -> None:
    for text in (CALL.removesuffix("\n</tool_call>"), CALL.removesuffix("}\n</tool_call>")):
        assert summed(read(PLAIN, text, [5])) == ("", "", [("f", '{"x": 1}')])


def test_text_is_let_out_as_soon_as_it_cannot_become_a_call() -> None:
    reader = AnswerReader(PLAIN, "", TOOLS)
    assert reader.feed("Hello <tool") == [Said("Hello")]
    assert reader.feed(" box") == [Said(" <tool box")]
    assert reader.feed(f" and {HERMES.open}") == [Said(" and")]


@pytest.mark.parametrize("opening", ["", "[", " [ "])
def test_a_call_without_marks_is_streamed_once_it_calls_a_tool_on_offer(opening: str) -> None:
    reader = AnswerReader(Notation(), "", TOOLS)
    assert reader.feed(opening + '{"name": "f", "parameters": ') == []
    begun = reader.feed('{"x": 1')
    assert without_ids(begun) == ["f", Arguments('{"x": 1')]
    assert reader.feed("}") == [Arguments("}")]


def test_json_that_calls_no_tool_on_offer_is_said() -> None:
    reader = AnswerReader(Notation(), "", TOOLS)
    text = '{"name": "someone", "parameters": {"x": 1}, "age": 5} is'
    found = reader.feed(text) + reader.finish()
    assert joined(found) == [Said(text)]


def test_what_follows_a_call_without_marks_is_said() -> None:
    found = read(Notation(), '{"name": "f", "parameters": {}} There.', [3])
    assert without_ids(found) == ["f", Arguments("{}"), Said("There.")]
