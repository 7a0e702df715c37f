"""KV and weights in one ranking: beside everything that could go, tried out."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexserve.policy.eviction import Profile, Speeds, added_latency, losses
from flexserve.policy.eviction_policy import EvictionPolicy
from flexserve.policy.ranking import Conversation, cheapest
from flexserve.protocol.trusted_app import IdleKv

CHUNK = 10

PROFILES = st.lists(
    st.builds(
        Profile,
        model=st.sampled_from("ab"),
        weights=st.integers(1, 50),
        rate=st.sampled_from([0.0, 0.1, 0.5, 3.0]),
        share=st.just(1.0),
        prompt=st.integers(0, 20).map(float),
        speeds=st.builds(Speeds, restore=st.sampled_from([1.0, 4.0]), prefill=st.sampled_from([1.0, 5.0])),
    ),
    max_size=2,
    unique_by=lambda profile: profile.model,
)
CONVERSATIONS = st.lists(
    st.builds(
        Conversation,
        model=st.sampled_from("ab"),
        sequence=st.integers(0, 9),
        size=st.integers(1, 60),
        rate=st.sampled_from([0.0, 0.05, 0.5, 2.0]),
        seconds=st.sampled_from([0.1, 1.0, 7.0]),
    ),
    max_size=4,
    unique_by=lambda each: (each.model, each.sequence),
)


def chunks(size: int) -> int:
    return -(-size // CHUNK)


def lost(profiles, resident, conversations, gone) -> float:
    """Expected seconds per second that requests lose when `gone` bytes of each part went."""
    weights = sum(
        p.rate * (added_latency(p, left) - added_latency(p, min(resident[p.model], p.weights)))
        for p in profiles
        for left in [min(resident[p.model] - gone.get((p.model, None), 0), p.weights)]
    )
    return weights + sum(each.loss for each in conversations if (each.model, each.sequence) in gone)


def freed(gone) -> int:
    return sum(chunks(size) for size in gone.values())


def everything(resident, conversations):
    """Every way to give up tails of weights and whole conversations."""
    tails = [range(held // CHUNK + 1) for held in resident.values()]
    for counts in itertools.product(*tails):
        for kept in itertools.product([False, True], repeat=len(conversations)):
            gone = {(m, None): n * CHUNK for m, n in zip(resident, counts, strict=True) if n}
            gone |= {
                (each.model, each.sequence): each.size
                for each, stays in zip(conversations, kept, strict=True)
                if not stays
            }
            yield gone


@given(
    profiles=PROFILES,
    parts=st.lists(st.integers(0, 4), min_size=2, max_size=2),
    conversations=CONVERSATIONS,
    size=st.integers(0, 160),
)
@settings(max_examples=150, deadline=None)
def test_nothing_else_that_frees_as_much_costs_less(profiles, parts, conversations, size):
    resident = {
        p.model: min(part, chunks(p.weights)) * CHUNK for p, part in zip(profiles, parts, strict=False)
    }
    gone = dict(cheapest(losses(profiles, resident, chunk=CHUNK), conversations, size, chunk=CHUNK))
    every = list(everything(resident, conversations))
    wanted = min(chunks(size), max(map(freed, every)))
    assert freed(gone) >= wanted
    assert all(size <= resident[model] for (model, sequence), size in gone.items() if sequence is None)
    best = min(lost(profiles, resident, conversations, each) for each in every if freed(each) >= wanted)
    assert lost(profiles, resident, conversations, gone) == pytest.approx(best, abs=1e-9)


def weights_of(model: str, rate: float) -> Profile:
    return Profile(model, 100, rate, 1.0, 0.0, Speeds(restore=10.0, prefill=1.0))


def conversation(sequence: int, size: int, seconds: float) -> Conversation:
    return Conversation("a", sequence, size, rate=1.0, seconds=seconds)


def test_a_large_conversation_stays_when_few_bytes_of_weights_are_enough():
    tails = losses([weights_of("a", 1.0)], {"a": 100}, chunk=CHUNK)
    cheap_by_byte = conversation(1, 100, seconds=5.0)
    assert cheapest(tails, [cheap_by_byte], 10, chunk=CHUNK) == [(("a", None), 10)]
    assert cheapest(tails, [cheap_by_byte], 100, chunk=CHUNK) == [(("a", 1), 100)]


def test_a_pinned_model_keeps_its_weights_as_long_as_there_is_kv():
    pinned = Profile("a", 100, 0.0, 0.0, 0.0, Speeds(10.0, 1.0), pinned=True)
    tails = losses([pinned], {"a": 100}, chunk=CHUNK)
    dear = conversation(1, 30, seconds=100.0)
    assert cheapest(tails, [dear], 20, chunk=CHUNK) == [(("a", 1), 30)]
    assert dict(cheapest(tails, [dear], 50, chunk=CHUNK)) == {("a", 1): 30, ("a", None): 20}


def test_of_what_nobody_needs_kv_goes_first():
    tails = losses([weights_of("a", 0.0)], {"a": 100}, chunk=CHUNK)
    assert cheapest(tails, [Conversation("a", 1, 10, 0.0, 5.0)], 10, chunk=CHUNK) == [(("a", 1), 10)]


# ---- what a conversation is worth -----------------------------------------------------------------


def idle(sequence: int, last_used: float, *, model: str = "a", tokens: int = 100, sealed: bool = False):
    return IdleKv(model, sequence, 1000, 1000, tokens, last_used, sealed, worth_sealing=not sealed)


def asked(policy: EvictionPolicy, times: int = 10) -> EvictionPolicy:
    for second in range(times):
        policy.invoked("a", 100, None, float(second))
    return policy


def test_the_conversation_that_was_used_last_is_the_likeliest_to_be_continued():
    policy = asked(EvictionPolicy(CHUNK))
    old, new = policy.conversations([idle(2, 99.0), idle(1, 50.0)], 100.0)
    assert (old.sequence, new.sequence) == (1, 2)
    assert new.rate > 10 * old.rate


def test_conversations_share_the_requests_of_their_model_that_continue_one():
    policy = asked(EvictionPolicy(CHUNK))
    for _ in range(200):
        policy.continued(one=True)
    found = policy.conversations([idle(1, 50.0), idle(2, 99.0), idle(3, 1.0, model="b")], 100.0)
    of_model = [each.rate for each in found if each.model == "a"]
    assert sum(of_model) == pytest.approx(10 / 3600, rel=0.01)
    assert next(each.rate for each in found if each.model == "b") == 0


def test_where_nobody_continues_a_conversation_kv_is_worth_nothing():
    policy = asked(EvictionPolicy(CHUNK))
    for _ in range(400):
        policy.continued(one=False)
    (found,) = policy.conversations([idle(1, 99.0)], 100.0)
    assert found.loss < 1e-9


def test_kv_without_a_sealed_copy_costs_what_computing_it_costs():
    policy = asked(EvictionPolicy(CHUNK))
    for _ in range(50):
        policy.computed("a", 100, 4.0)
    (found,) = policy.conversations([idle(1, 99.0, tokens=50)], 100.0)
    assert found.seconds == pytest.approx(2.0, rel=0.01)


def test_kv_with_a_sealed_copy_costs_what_was_measured_when_others_were_taken_in():
    policy = asked(EvictionPolicy(CHUNK))
    policy.resumed("a", 1000, 0.5)
    policy.resumed("a", 1000, 0.5)
    policy.resumed("b", 1100, 1.5)
    a, b = policy.conversations([idle(1, 9.0, sealed=True), idle(1, 9.5, model="b", sealed=True)], 10.0)
    assert [a.seconds, b.seconds] == pytest.approx([0.05, 1.0])


def test_kv_whose_sealed_copy_was_never_read_costs_what_reading_as_many_weights_costs():
    policy = asked(EvictionPolicy(CHUNK))
    (found,) = policy.conversations([idle(1, 9.0, sealed=True)], 10.0)
    assert found.seconds == policy.restore_seconds(1000) > 0


def test_of_a_conversation_no_more_goes_than_the_os_gets_of_it():
    policy = asked(EvictionPolicy(CHUNK))
    worth = policy.conversations([idle(1, 9.0)], 10.0)
    assert policy.victims({("a", 1): 40}, 1000, [], worth) == [(("a", 1), 40)]
    assert policy.victims({("a", 2): 40}, 1000, [], worth) == []


def test_the_policys_own_threshold_says_whose_memory_is_moved():
    profiles = [
        Profile("busy", 200, 3.0, 0.7, 0.0, Speeds(1.0, 1.0)),
        Profile("seldom", 200, 1.0, 0.3, 0.0, Speeds(1.0, 1.0)),
        Profile("other", 200, 0.9, 0.2, 0.0, Speeds(1.0, 1.0)),
    ]
    resident = {"busy": 0, "seldom": 200, "other": 0}
    step = EvictionPolicy(CHUNK, threshold=0.5).rearrangement(profiles, resident)
    assert step is not None
    assert (step.model, step.surplus) == ("busy", (("seldom", 200),))
    few = [dataclasses.replace(each, share=0.1, rate=1.0) for each in profiles]
    resident = {"busy": 200, "other": 200, "seldom": 0}
    assert EvictionPolicy(CHUNK, top=2).rearrangement(few, resident) is None
    step = EvictionPolicy(CHUNK, top=1).rearrangement(few, {"busy": 0, "other": 0, "seldom": 200})
    assert step is not None
    assert (step.model, step.target) == ("busy", 200)


def test_what_a_prompt_hides_stays_where_kv_is_worth_nothing():
    hidden = Profile("a", 100, 1.0, 1.0, 1000.0, Speeds(restore=10.0, prefill=1.0))
    tails = losses([hidden], {"a": 100}, chunk=CHUNK)
    assert cheapest(tails, [Conversation("a", 1, 10, 0.0, 5.0)], 10, chunk=CHUNK) == [(("a", 1), 10)]


def test_sealed_copies_that_took_no_time_or_had_no_tokens_teach_nothing():
    policy = asked(EvictionPolicy(CHUNK))
    policy.resumed("a", 1000, 0.0)
    policy.resumed("a", 0, 0.5)
    (found,) = policy.conversations([idle(1, 9.0, sealed=True)], 10.0)
    assert found.seconds == policy.restore_seconds(1000) > 0
