"""Batching: decodes go together, a prompt alone, in turns while somebody waits."""

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
    assert batching.next({5: 1, 4: 900}) == ([4], 64)
    assert batching.next({5: 1, 4: 836}) == ([5], BATCH)


def test_short_prompts_of_many_are_all_computed_before_the_one_that_waits() -> None:
    pending = {1: 1, 2: 10, 3: 10, 4: 10}
    batching = Batching(BATCH)
    for prompt in (2, 3, 4):
        assert batching.next(pending) == ([prompt], 10)
        pending[prompt] = 1
    assert batching.next(pending) == ([1, 2, 3, 4], BATCH)


def test_all_prompts_between_two_decodes_share_one_budget() -> None:
    batching, pending = Batching(BATCH), {1: 1, 2: 1, 3: 1}
    for prompt in (4, 5):
        assert batching.next({**pending, prompt: 30}) == ([prompt], 30)
        pending[prompt] = 1
    assert batching.next({**pending, 6: 30}) == ([1, 2, 3, 4, 5], BATCH)


def test_the_more_prompts_wait_beside_one_the_larger_are_their_pieces() -> None:
    assert Batching(BATCH).next({1: 1, 2: 900, 3: 900, 4: 900}) == ([2], 3 * 64)
    assert Batching(BATCH).next({1: 1, **dict.fromkeys(range(2, 30), 900)}) == ([2], BATCH)
    assert Batching(BATCH).next({1: 1, 2: 1, 3: 1, 4: 900, 5: 900}) == ([4], 64)


@given(
    prompts=st.lists(st.integers(2, 2000), max_size=12),
    ready=st.integers(0, 12),
    answer=st.integers(1, 4),
)
def test_whoever_waits_for_a_token_waits_for_one_batch_at_most_and_all_come_to_their_end(
    prompts: list[int], ready: int, answer: int
) -> None:
    batching = Batching(BATCH)
    pending = dict.fromkeys(range(ready), 1) | {100 + at: size for at, size in enumerate(prompts)}
    left = dict.fromkeys(pending, answer)
    waited = dict.fromkeys(pending, 0)  # tokens of prompts since the request could have had its next token
    while pending:
        chosen, limit = batching.next(pending)
        assert chosen
        taken = {request: min(pending[request], limit) for request in chosen}
        assert sum(taken.values()) <= BATCH
        for request in [request for request, tokens in pending.items() if tokens == 1]:
            waited[request] = 0 if request in chosen else waited[request] + sum(taken.values())
            assert waited[request] <= BATCH
        for request, tokens in taken.items():
            pending[request] -= tokens
            if not pending[request]:
                left[request] -= 1
                pending[request] = 1
            if not left[request]:
                del pending[request]
