"""Thoughts: where they begin and end in what a model writes, and how their end is forced."""

from __future__ import annotations

import pytest

from flexserve.protocol.notation import Notation
from flexserve.trusted.text.thoughts import Thoughts, thought_end

HARMONY = Notation("", "", harmony=True)
END = [7, 8]


def thoughts(
    begun: str = "", notation: Notation | None = None, most: int | None = None, must_end: bool = False
) -> Thoughts:
    return Thoughts(notation or Notation(), begun, END, most=most, must_end=must_end)


@pytest.mark.parametrize(
    ("notation", "begun", "pieces", "inside"),
    [
        (Notation(), "", ["yes", " <think>"], [False, False]),
        (
            Notation(),
            "",
            ["\n", "<th", "ink>", "a", "</think", ">", "<think>"],
            [False, False, True, True, True, False, False],
        ),
        (Notation(), "<think>\n", ["a </thi", "nk> b"], [True, False]),
        (Notation(), "", ["a<think>"], [False]),
        (
            HARMONY,
            "<|start|>assistant",
            ["<|channel|>", "analysis<|message|>", "hm", "<|end|>", "<|channel|>analysis<|message|>"],
            [False, True, True, False, True],
        ),
        (Notation("", ""), "", ["<think>"], [False]),
    ],
)
def test_thoughts_begin_and_end_with_their_marks(
    notation: Notation, begun: str, pieces: list[str], inside: list[bool]
) -> None:
    followed = thoughts(begun, notation)
    found = []
    for piece in pieces:
        was = followed.inside
        ended = followed.took(piece)
        assert ended == (was and not followed.inside)
        found.append(followed.inside)
    assert found == inside


def test_a_long_thought_is_followed_to_its_end() -> None:
    followed = thoughts("<think>")
    for _ in range(1000):
        assert not followed.took("so it goes, </thin and so on ")
    assert followed.took("</think>")


def test_the_end_is_forced_once_the_tokens_are_spent() -> None:
    followed = thoughts("<think>", most=2)
    assert followed.forced() is None
    followed.took("a")
    assert followed.forced() is None
    followed.took("b")
    assert (followed.forced(), followed.forced()) == (7, 8)
    assert followed.took("</think>")
    assert followed.forced() is None


def test_an_answer_that_has_to_follow_does_not_end_in_a_thought() -> None:
    assert thoughts("<think>").instead_of_end(2) == 2
    followed = thoughts("<think>", must_end=True)
    assert followed.instead_of_end(2) == 7
    assert followed.forced() == 8


def test_what_ends_a_thought_begins_what_is_said() -> None:
    assert thought_end(Notation("[THINK]", "[/THINK]")) == "[/THINK]"
    assert thought_end(HARMONY).endswith("<|channel|>final<|message|>")
