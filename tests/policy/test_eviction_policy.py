"""What the cache goes by: which model is expected next, and the speeds that were measured."""

from __future__ import annotations

import pytest

from flexserve.policy import eviction_policy
from flexserve.policy.eviction_policy import EvictionPolicy
from flexserve.units import MIB

CHUNK = MIB
LONG, SHORT = eviction_policy._EXPECTED_FOR, 1.0  # seconds


@pytest.fixture
def policy() -> EvictionPolicy:
    return EvictionPolicy(CHUNK)


def prefill_speed(policy: EvictionPolicy, model: str = "a") -> float:
    return policy.profile(model, MIB, 0.0, pinned=False).speeds.prefill


# ---- who comes next -------------------------------------------------------------------------------


def test_the_model_that_a_sender_asks_next_is_expected_for_a_while(policy: EvictionPolicy) -> None:
    assert policy.invoked("a", 10, "b", 100.0) == "b"
    assert policy.expects("b", 100.0)
    assert policy.expects("b", 100.0 + LONG - SHORT)
    assert not policy.expects("b", 100.0 + LONG)
    assert not policy.expects("a", 100.0)


def test_nobody_is_expected_at_first(policy: EvictionPolicy) -> None:
    assert policy.invoked("a", 10, None, 0.0) is None
    assert not policy.expects("a", 0.0)
    assert not policy.expects("", 0.0)


def test_a_model_that_usually_follows_is_expected_and_a_sender_knows_better(policy: EvictionPolicy) -> None:
    for second, model in enumerate("abab"):
        policy.invoked(model, 10, None, float(second))
    assert policy.invoked("a", 10, None, 4.0) == "b"
    assert policy.invoked("a", 10, "c", 5.0) == "c"


def test_a_model_that_follows_itself_has_nobody_brought_in(policy: EvictionPolicy) -> None:
    assert policy.invoked("a", 10, "a", 0.0) is None
    assert not policy.expects("a", 0.0)


def test_what_is_expected_counts_as_if_it_were_asked_all_the_time(policy: EvictionPolicy) -> None:
    unknown = policy.profile("b", MIB, 1.0, pinned=False)
    assert (unknown.rate, unknown.share) == (0.0, 0.0)
    policy.invoked("a", 10, "b", 1.0)
    expected = policy.profile("b", MIB, 1.0, pinned=False)
    assert (expected.rate, expected.share) == (eviction_policy._EXPECTED_RATE, 1.0)
    asked = policy.profile("a", MIB, 1.0, pinned=True)
    assert 0 < asked.rate < expected.rate
    assert (asked.share, asked.prompt, asked.pinned, asked.weights) == (1.0, 10.0, True, MIB)


# ---- how fast it goes -----------------------------------------------------------------------------


def test_the_first_prompt_tells_a_models_speed_and_later_ones_change_it_in_part(
    policy: EvictionPolicy,
) -> None:
    before = prefill_speed(policy)
    policy.computed("a", 100, 4.0)
    assert prefill_speed(policy) == 25.0
    policy.computed("a", 200, 2.0)
    assert prefill_speed(policy) == pytest.approx(0.7 * 25 + 0.3 * 100)
    assert prefill_speed(policy, "b") == before


def test_short_prompts_and_ones_that_took_no_time_tell_nothing(policy: EvictionPolicy) -> None:
    before = prefill_speed(policy)
    telling = eviction_policy._TELLING_TOKENS
    policy.computed("a", telling - 1, 1.0)
    policy.computed("a", 1000, 0.0)
    assert prefill_speed(policy) == before
    policy.computed("a", telling, 1.0)
    assert prefill_speed(policy) == telling


def test_a_restore_that_was_waited_for_tells_the_speed_of_restores(policy: EvictionPolicy) -> None:
    assert policy.restore_seconds(500 * 10**6) == pytest.approx(2.0), "until one was measured"
    policy.restored(1000 * 10**6, 1.5, 0.5)
    assert policy.restore_seconds(10**9) == pytest.approx(10**9 / (0.7 * 250e6 + 0.3 * 500e6))
    for _ in range(50):
        policy.restored(1000 * 10**6, 1.5, 0.5)
    assert policy.restore_seconds(10**9) == pytest.approx(2.0, rel=1e-4)
    assert policy.profile("a", MIB, 0.0, pinned=False).speeds.restore == pytest.approx(500e6, rel=1e-4)


def test_small_restores_and_ones_that_nobody_waited_for_tell_nothing(policy: EvictionPolicy) -> None:
    before = policy.restore_seconds(MIB)
    policy.restored(eviction_policy._TELLING_BYTES - 1, 1.0, 1.0)
    policy.restored(1 << 30, 0.0, 1.0)
    assert policy.restore_seconds(MIB) == before
    policy.restored(eviction_policy._TELLING_BYTES, 1.0, 1.0)
    assert policy.restore_seconds(MIB) != before
