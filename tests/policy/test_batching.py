"""Batching: decodes go together, prompts apart, in turns while somebody waits."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from flexserve.policy.batching import Batching, Part

BATCH = 512


def parts(pending: Mapping[int, int]) -> dict[int, Part]:
    """Return requests that are in the sequences of their numbers."""
    return {request: Part(tokens, request) for request, tokens in pending.items()}


def test_those_that_wait_for_their_next_token_are_computed_together() -> None:
    assert Batching(BATCH).next(parts({3: 1, 1: 1, 2: 1})) == ([3, 1, 2], BATCH)


def test_a_prompt_that_keeps_nobody_waiting_is_computed_in_whole_batches() -> None:
    batching = Batching(BATCH)
    for left in (2000, 1488, 2):
        assert batching.next(parts({7: left})) == ([7], min(left, BATCH))


def test_a_prompt_and_those_that_wait_for_their_next_token_take_turns() -> None:
    batching = Batching(BATCH)
    for left in (200, 136, 72):
        assert batching.next(parts({1: 1, 2: left, 3: 1})) == ([2], 64), "the newcomer first, in a piece"
        assert batching.next(parts({1: 1, 2: left - 64, 3: 1})) == ([1, 3], BATCH)


def test_prompts_are_computed_by_their_sequences_upwards_and_then_from_the_lowest() -> None:
    batching = Batching(BATCH)
    pending = {5: 900, 2: 300, 7: 300}
    for request, tokens in ((2, 300), (5, 512), (5, 388)):
        assert batching.next(parts(pending)) == ([request], tokens)
        pending[request] -= tokens
        pending = {request: tokens for request, tokens in pending.items() if tokens}
    pending[2] = 300
    assert batching.next(parts(pending)) == ([7], 300)
    assert batching.next(parts({2: 300})) == ([2], 300)


def test_a_prompt_that_was_begun_is_computed_to_its_end() -> None:
    batching = Batching(BATCH)
    assert batching.next(parts({5: 900})) == ([5], BATCH)
    assert batching.next(parts({5: 388, 4: 900, 6: 900})) == ([5], 388)


def test_short_prompts_in_neighbouring_sequences_share_a_graph() -> None:
    assert Batching(BATCH).next(parts({1: 100, 2: 100, 3: 120, 4: 100})) == ([1, 2, 3, 4], 100)
    assert Batching(BATCH).next(parts({1: 100, 3: 100})) == ([1], 100), "a gap, so it would be two graphs"
    assert Batching(BATCH).next(parts({1: 100, 2: 99})) == ([1], 100), "none is begun twice for another one"
    assert Batching(BATCH).next(parts({1: 200, 2: 200, 3: 200})) == ([1, 2], 200), "as a batch takes them in"


def test_prompts_that_have_to_have_graphs_of_their_own_have_them() -> None:
    assert Batching(BATCH).next({1: Part(100, 1, apart=True), 2: Part(100, 2, apart=True)}) == ([1], 100)


def test_short_prompts_of_many_are_all_computed_before_the_one_that_waits() -> None:
    pending = {1: 1, 2: 10, 3: 10, 4: 10}
    batching = Batching(BATCH)
    assert batching.next(parts(pending)) == ([2, 3, 4], 10)
    assert batching.next(parts(dict.fromkeys(pending, 1))) == ([1, 2, 3, 4], BATCH)


def test_all_prompts_between_two_decodes_share_one_budget() -> None:
    batching, pending = Batching(BATCH), {1: 1, 2: 1, 3: 1}
    for prompt in (4, 5):
        assert batching.next(parts({**pending, prompt: 30})) == ([prompt], 30)
        pending[prompt] = 1
    assert batching.next(parts({**pending, 6: 30})) == ([1, 2, 3, 4, 5], BATCH)


def test_the_more_prompts_wait_beside_others_the_larger_are_their_pieces() -> None:
    def piece(ready: int, prompts: int) -> int:
        pending = {number: 1 if number < ready else 900 for number in range(ready + prompts)}
        chosen, limit = Batching(BATCH).next(parts(pending))
        assert chosen == [ready], "a prompt, the lowest"
        return limit

    assert [piece(1, prompts) for prompts in (1, 2, 3, 30)] == [64, 256, BATCH, BATCH]
    assert [piece(8, prompts) for prompts in (1, 2, 4, 8)] == [64, 64, 128, BATCH]


@given(
    prompts=st.lists(st.integers(2, 2000), max_size=12),
    ready=st.integers(0, 12),
    answer=st.integers(1, 4),
    data=st.data(),
)
def test_whoever_waits_for_a_token_waits_for_one_batch_at_most_and_all_come_to_their_end(
    prompts: list[int], ready: int, answer: int, data: st.DataObject
) -> None:
    batching = Batching(BATCH)
    pending = dict.fromkeys(range(ready), 1) | {100 + at: size for at, size in enumerate(prompts)}
    sequences = dict(zip(pending, data.draw(st.permutations(range(len(pending)))), strict=True))
    left = dict.fromkeys(pending, answer)
    waited = dict.fromkeys(pending, 0)  # tokens of prompts since the request could have had its next token
    while pending:
        chosen, limit = batching.next(
            {request: Part(tokens, sequences[request]) for request, tokens in pending.items()}
        )
        assert chosen
        assert len(chosen) == len(set(chosen))
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


def test_a_prompt_waits_for_one_prompt_of_each_other_sequence_at_most() -> None:
    batching, others, waited = Batching(BATCH), range(1, 5), 0
    batching.next(parts({1: 300}))
    while batching.next(parts({0: 300, **dict.fromkeys(others, 300)}))[0] != [0]:
        waited += 1  # … which all have another one at once
    assert waited <= len(others)
