"""Batching: decodes go together, a prompt alone, in turns while somebody waits."""

from __future__ import annotations

from flexserve.policy.batching import Batching

BATCH = 512


def test_those_that_wait_for_their_next_token_are_computed_together() -> None:
    assert Batching(BATCH).next({3: 1, 1: 1, 2: 1}) == ([3, 1, 2], BATCH)


def test_a_prompt_that_keeps_nobody_waiting_is_computed_in_whole_batches() -> None:
    batching = Batching(BATCH)
    for left in (2000, 1488, 2):
        assert batching.next({7: left}) == ([7], BATCH)


def test_a_prompt_and_those_that_wait_for_their_next_token_take_turns() -> None:
    batching = Batching(BATCH)
    for left in (200, 136, 72):
        assert batching.next({1: 1, 2: left, 3: 1}) == ([2], 64), "the newcomer first, in a piece"
        assert batching.next({1: 1, 2: left - 64, 3: 1}) == ([1, 3], BATCH)


def test_prompts_are_computed_in_the_order_in_which_they_began() -> None:
    batching = Batching(BATCH)
    assert batching.next({5: 900, 4: 900}) == ([5], BATCH)
    assert batching.next({5: 388, 4: 900}) == ([5], BATCH)
    assert batching.next({5: 1, 4: 900}) == ([5], BATCH), "its first token waits for no other's prompt"
    assert batching.next({5: 1, 4: 900}) == ([4], 64)
