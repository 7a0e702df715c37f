"""The pressure policy to the byte and to the second, where its properties leave room."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from flexserve.platforms.ports import MemorySample
from flexserve.policy.pressure import Bound, Holdings, Limits, PressurePolicy
from flexserve.units import format_size

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


def test_each_refusal_says_in_words_what_is_in_the_way() -> None:
    policy, held = PressurePolicy(LIMITS), Holdings(5000, 5000)

    def refused(available: int, now: float, stall: float | None = None) -> tuple[Bound | None, str]:
        seen = MemorySample(total=100_000, available=available, stall=stall)
        decision = policy.grant(seen, held, size=100, minimum=0, now=now)
        assert decision.size == 0
        return decision.bound, decision.reason

    assert refused(-5, 0) == (
        Bound.LEVEL,
        f"refused: {format_size(0)} would be left free, the rest is kept free for others",
    )
    bound, reason = refused(1000, 0, stall=50.0)
    assert (bound, reason.split(", ")[1]) == (Bound.STALL, "processes stall on memory")
    order = policy.recall(sample(500), held, now=0)
    assert order is not None
    assert order.reason == f"{format_size(500)} available, below {format_size(1000)}"
    bound, reason = refused(1500, 1.0)
    assert (bound, reason.split(", ")[1]) == (Bound.PRESSED, "memory was short a moment ago")
    policy.recalled(asked=None, returned=100, now=1.0)
    bound, reason = refused(1600, 2.0)
    assert (bound, reason.split(", ")[1]) == (Bound.HOLD, "memory was just recalled")
    policy.reserve(300, until=99.0, now=50.0)
    bound, reason = refused(1300, 50.0)
    assert (bound, reason.split(", ")[1]) == (
        Bound.RESERVED,
        f"{format_size(300)} is held for another program",
    )


def test_a_recall_for_the_cap_says_so() -> None:
    order = PressurePolicy(LIMITS, cap=100).recall(sample(50_000), Holdings(150, 150), now=0)
    assert order is not None
    assert order.reason == f"{format_size(150)} is granted, the cap is {format_size(100)}"


def test_what_others_read_back_is_said_and_promises_count_as_taken_from_what_is_free() -> None:
    policy = PressurePolicy(dataclasses.replace(LIMITS, full=25, cushion=50, refault_rate=10))

    def seen(free: int, refaulted: int) -> MemorySample:
        return MemorySample(100_000, 50_000, None, free, refaulted)

    policy.recall(seen(10, 0), Holdings(1000, 1000), now=0.0)
    order = policy.recall(seen(10, 2000), Holdings(1000, 1000), now=1.0)
    assert order is not None
    assert order.gentle
    assert f"read back {format_size(2000)} a second" in order.reason
    decision = policy.grant(seen(100, 2000), Holdings(30, 0), size=9000, minimum=0, now=2.0)
    assert (decision.size, decision.bound) == (20, Bound.FOREGROUND)
    assert "other programs need the memory for their files" in decision.reason


def test_a_recall_whose_outcome_nobody_told_is_repeated_after_the_wait_that_misses_made() -> None:
    policy, held = PressurePolicy(LIMITS), Holdings(5000, 5000)
    for now in (0.0, 2.0):
        order = policy.recall(sample(0), held, now=now)
        assert order is not None
        policy.recalled(asked=order.size, returned=0, now=now)
    assert policy.recall(sample(0), held, now=6.0) is not None
    assert policy.recall(sample(0), held, now=9.75) is None
    assert policy.recall(sample(0), held, now=10.0) is not None


@pytest.mark.parametrize("minimum", [1, 650])
def test_below_the_line_the_minimum_is_granted_down_to_the_emergency_line_and_said(minimum: int) -> None:
    policy = PressurePolicy(LIMITS)
    decision = policy.grant(sample(LIMITS.emergency + 650), NOTHING, size=800, minimum=minimum, now=0)
    assert (decision.size, decision.bound) == (minimum, Bound.LEVEL)
    assert decision.reason == "only the minimum: the rest is kept free for others"


@pytest.mark.parametrize(("granted", "expected"), [(5000, 100), (60, 60)])
def test_a_stall_recalls_no_more_than_makes_memory_roomy_and_than_is_granted(
    granted: int, expected: int
) -> None:
    seen = MemorySample(total=100_000, available=LIMITS.roomy - 100, stall=LIMITS.stall)
    order = PressurePolicy(LIMITS).recall(seen, Holdings(granted, granted), now=0)
    assert order is not None
    assert (order.size, order.reason) == (
        expected,
        "processes stalled on memory 10 % of the last ten seconds",
    )
