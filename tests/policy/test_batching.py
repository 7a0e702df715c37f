"""Batching: decodes go together, and so do short prompts; in turns while somebody waits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

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


def test_prompts_that_fit_share_a_graph_and_longer_ones_wait() -> None:
    batching = Batching(BATCH)
    assert batching.next({1: 13, 2: 300, 3: 400, 4: 13}) == ([1, 2, 4], BATCH)
    batching = Batching(BATCH)
    assert batching.next({1: 1, 2: 13, 3: 60, 4: 13, 5: 40}) == ([2, 4], 64), (
        "while one waits, no more than a piece"
    )


@given(pending=st.dictionaries(st.integers(0, 20), st.integers(1, 2000), min_size=1, max_size=8))
def test_every_request_ends_and_no_graph_is_too_large(pending: dict[int, int]) -> None:
    batching = Batching(BATCH)
    for _ in range(1000):
        chosen, limit = batching.next(pending)
        taken = {request: min(pending[request], limit) for request in chosen}
        assert 0 < sum(taken.values()) <= BATCH
        for request, count in taken.items():
            pending[request] -= count
            if not pending[request]:
                del pending[request]
        if not pending:
            return
    raise AssertionError("they never end")
