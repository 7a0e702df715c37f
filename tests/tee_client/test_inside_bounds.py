"""What the next token of an answer may be, as the application is told it."""

from __future__ import annotations

from inside_world import ByteVocabulary

from flexserve.protocol.notation import Notation
from flexserve.tee_client.bounds import Bounds
from flexserve.trusted.text.constraint import OPTIONS
from flexserve.trusted.text.grammar import Confinement
from flexserve.trusted.text.thoughts import Thoughts

VOCABULARY = ByteVocabulary()
NOTATION = Notation(thought_open="<think>", thought_close="</think>")
END = [*b"</think>"]


def confinement(text: str) -> Confinement:
    return Confinement(VOCABULARY.tree(), f'{OPTIONS}\nstart: "{text}"\n')


def told(bounds: Bounds) -> set[int] | None:
    """Return the tokens that are told."""
    mask = bounds.next()
    if mask is None:
        return None
    bits = int.from_bytes(mask, "little")
    return {token for token in range(VOCABULARY.size) if bits >> token & 1}


def say(bounds: Bounds, text: str) -> None:
    for byte in text.encode():
        bounds.took(byte, chr(byte))


def thoughts(*, most: int | None = None, must_end: bool = False) -> Thoughts:
    return Thoughts(NOTATION, "<think>", END, most=most, must_end=must_end)


def test_without_a_grammar_anything_may_come() -> None:
    bounds = Bounds(VOCABULARY, Thoughts(None, "", [], most=None, must_end=False), None)
    assert told(bounds) is None


def test_what_may_come_is_told_once_for_each_token() -> None:
    bounds = Bounds(VOCABULARY, Thoughts(None, "", [], most=None, must_end=True), confinement("ab"))
    assert told(bounds) == {ord("a")}
    assert told(bounds) is None
    say(bounds, "a")
    assert told(bounds) == {ord("b")}
    say(bounds, "b")
    assert told(bounds) == set(VOCABULARY.endings)


def test_a_thought_that_is_long_enough_is_ended() -> None:
    bounds = Bounds(VOCABULARY, thoughts(most=2), None)
    for _ in range(2):
        assert told(bounds) is None
        say(bounds, "x")
    for byte in END:
        assert told(bounds) == {byte}
        say(bounds, chr(byte))
    assert told(bounds) is None


def test_an_answer_that_is_confined_comes_behind_its_thought() -> None:
    bounds = Bounds(VOCABULARY, thoughts(must_end=True), confinement("ab"))
    assert told(bounds) == set(range(VOCABULARY.size)) - set(VOCABULARY.endings)
    say(bounds, "x</think>")
    assert told(bounds) == {ord("a")}
