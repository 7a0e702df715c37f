"""Learned transitions: enough evidence or no guess, gaps do not count, memory is bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexserve.policy.transitions import Transitions


def learned(models: str, **options) -> Transitions:
    transitions = Transitions(**options)
    for second, model in enumerate(models):
        transitions.note(model, float(second))
    return transitions


def test_a_loop_is_known_after_two_rounds():
    transitions = learned("abcabca")
    assert [transitions.expected(model) for model in "abc"] == ["b", "c", "a"]


def test_once_is_no_evidence():
    assert learned("ab").expected("a") is None
    assert learned("abab").expected("a") == "b"


def test_a_model_that_is_followed_by_anything_has_no_expected_successor():
    assert learned("abacabac").expected("a") is None
    assert learned("abababac").expected("a") == "b"


def test_three_times_in_five_are_enough():
    assert learned("abababacac").expected("a") == "b"


def test_a_model_may_follow_itself():
    assert learned("aaaa").expected("a") == "a"


def test_what_comes_after_a_long_gap_was_not_caused_by_what_came_before():
    transitions = Transitions(gap=10.0)
    for start in (0.0, 100.0, 200.0):
        transitions.note("a", start)
        transitions.note("b", start + 1)
    assert transitions.expected("a") == "b"
    assert transitions.expected("b") is None


def test_what_comes_within_the_gap_was_caused_by_what_came_before():
    transitions = Transitions(gap=10.0)
    for when in (0.0, 10.0, 20.0):
        transitions.note("a", when)
    assert transitions.expected("a") == "a"


def test_the_first_invocation_follows_nothing():
    transitions = Transitions()
    transitions.note("a", 0.0)
    assert not transitions._followers


def test_the_models_that_were_invoked_longest_ago_are_forgotten_first():
    known = learned("ababab", limit=2)
    assert (known.expected("a"), known.expected("b")) == ("b", "a")
    changed = learned("ababab" + "cc", limit=2)
    assert [changed.expected(model) for model in "abc"] == [None, "a", None]
    assert list(changed._followers) == ["b", "c"]


def test_a_memory_for_nobody_is_a_mistake():
    with pytest.raises(ValueError, match="at least one model"):
        Transitions(limit=0)


def test_a_clock_that_jumps_back_is_no_gap():
    transitions = Transitions(gap=10.0)
    for when in (1000.0, 5.0, 1000.0, 5.0, 6.0):
        transitions.note("a", when)
    assert transitions.expected("a") == "a"


def test_a_workflow_that_changed_is_followed_after_a_few_rounds():
    assert learned("ab" * 50 + "ac" * 6).expected("a") == "c"


def test_unknown_models_have_no_successor():
    assert Transitions().expected("a") is None


@given(models=st.text("abcdef", max_size=200), limit=st.integers(1, 4))
def test_memory_is_bounded_and_guesses_are_models_that_were_seen(models, limit):
    transitions = learned(models, limit=limit)
    assert len(transitions._followers) <= limit
    for model in "abcdef":
        guess = transitions.expected(model)
        assert guess is None or model + guess in models
