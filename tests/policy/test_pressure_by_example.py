"""The pressure policy to the byte and to the second, where its properties leave room."""

from __future__ import annotations

import itertools

import pytest

from flexserve.platforms.ports import MemorySample
from flexserve.policy.pressure import Bound, Holdings, Limits, PressurePolicy

LIMITS = Limits(low=1000, high=1500, emergency=250)
NOTHING = Holdings(granted=0, used=0)


def sample(available: int) -> MemorySample:
    return MemorySample(total=100_000, available=available, stall=None)


def test_what_is_asked_for_to_the_last_byte_above_the_line_is_bounded_by_nothing() -> None:
    decision = PressurePolicy(LIMITS).grant(sample(5000), NOTHING, size=4000, minimum=10, now=0)
    assert (decision.size, decision.reason, decision.bound) == (4000, "enough memory is free", None)


@pytest.mark.parametrize(("room", "minimum"), [(4000, 4000), (1, 0)])
def test_what_is_above_the_line_is_an_ordinary_grant_down_to_the_minimum(room: int, minimum: int) -> None:
    policy = PressurePolicy(LIMITS)
    decision = policy.grant(sample(LIMITS.low + room), NOTHING, size=9000, minimum=minimum, now=0)
    assert (decision.size, decision.bound) == (room, Bound.LEVEL)
    assert decision.reason.startswith("only part of it")


def test_where_all_that_the_cap_allows_is_granted_there_is_no_byte_more() -> None:
    policy, held = PressurePolicy(LIMITS, cap=100), Holdings(100, 100)
    assert policy.grant(sample(50_000), held, size=50, minimum=0, now=0).size == 0
    assert policy.grant(sample(50_000), held, size=50, minimum=1, now=0).size == 0


def test_what_came_back_before_the_last_hold_ended_is_not_set_aside_again() -> None:
    policy = PressurePolicy(LIMITS)
    for now in (0.0, 10.0):
        policy.recalled(asked=None, returned=100, now=now)
    assert policy.grant(sample(2000), NOTHING, size=9000, minimum=0, now=11.0).size == 900


def test_recalls_that_bring_too_little_wait_twice_as_long_each_time() -> None:
    policy, held, times = PressurePolicy(LIMITS), Holdings(5000, 5000), [0.0]
    while len(times) < 6:
        now = times[-1]
        order = policy.recall(sample(0), held, now=now)
        if order is None:
            times[-1] += 0.25
            continue
        policy.recalled(asked=order.size, returned=order.size if len(times) == 4 else 0, now=now)
        times.append(now)
    assert [later - earlier for earlier, later in itertools.pairwise(times[:-1])] == [2.0, 4.0, 8.0, 1.0]
