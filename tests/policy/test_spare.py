"""Memory that nobody needs: what may come back though no request asks for it."""

from __future__ import annotations

from flexserve.platforms.ports import MemorySample
from flexserve.policy.pressure import Holdings, Limits, PressurePolicy
from flexserve.units import MIB

LIMITS = Limits(low=1000, high=1500, emergency=250)
NOTHING = Holdings(granted=0, used=0)


def calm_policy(available: int = 5000, *, cap: int | None = None) -> PressurePolicy:
    """A policy that saw two looks of a second apart, between which nobody read anything back."""
    policy = PressurePolicy(LIMITS, cap=cap)
    for now in (-2.0, -1.0):
        policy.spare(telling(available), NOTHING, size=0, now=now)
    return policy


def telling(available: int, refaulted: int = 0, stall: float | None = None) -> MemorySample:
    return MemorySample(100_000, available, stall, free=available, refaulted=refaulted)


def test_what_stands_above_the_high_line_is_spare_in_pieces_that_start_no_recall() -> None:
    policy = calm_policy()
    assert policy.spare(telling(5000), NOTHING, size=9000, now=0) == LIMITS.high - LIMITS.low
    assert policy.spare(telling(5000), NOTHING, size=70, now=1) == 70
    assert policy.spare(telling(1600), NOTHING, size=9000, now=2) == 100
    assert policy.spare(telling(1500), NOTHING, size=9000, now=3) == 0
    assert policy.spare(telling(5000), Holdings(3000, 0), size=9000, now=4) == 500


def test_nothing_is_spare_until_others_are_known_to_read_nothing_back() -> None:
    policy = PressurePolicy(LIMITS)
    assert policy.spare(telling(5000), NOTHING, size=100, now=0) == 0
    assert policy.spare(telling(5000), NOTHING, size=100, now=2) == 100
    assert policy.spare(telling(5000, refaulted=2 * MIB), NOTHING, size=100, now=4) == 0
    assert policy.spare(MemorySample(100_000, 5000, None), NOTHING, size=100, now=20) == 0, (
        "an OS that does not tell"
    )


def test_nothing_is_spare_while_a_sign_of_others_lack_counts() -> None:
    policy = calm_policy()
    short = MemorySample(100_000, 5000, None, free=0, refaulted=4 * MIB)
    assert policy.spare(short, NOTHING, size=100, now=0) == 0
    looks = [
        policy.spare(telling(5000, 4 * MIB), NOTHING, size=100, now=float(now)) for now in range(2, 26, 2)
    ]
    assert looks[:-2] == [0] * 10, "22 seconds"
    assert looks[-1] == 100


def test_nothing_is_spare_in_a_stall_in_a_hold_or_beyond_the_cap() -> None:
    assert calm_policy().spare(telling(5000, stall=11.0), NOTHING, size=100, now=0) == 0
    policy = calm_policy()
    policy.recalled(asked=100, returned=100, now=0)
    assert policy.spare(telling(5000), NOTHING, size=100, now=2) == 0
    assert policy.spare(telling(5000), NOTHING, size=100, now=3) == 100
    assert calm_policy(cap=40).spare(telling(5000), NOTHING, size=100, now=0) == 40


def test_what_a_person_had_recalled_is_not_spare_until_a_request_needs_memory() -> None:
    policy = calm_policy()
    policy.recalled(asked=None, returned=100, now=0)
    assert [policy.spare(telling(5000), NOTHING, size=100, now=float(now)) for now in range(2, 60, 2)] == [
        0
    ] * 29
    policy.grant(telling(5000), NOTHING, size=100, minimum=0, now=60)
    assert policy.spare(telling(5000), NOTHING, size=100, now=61) == 100


def test_what_another_program_reserved_is_not_spare() -> None:
    policy = calm_policy(2000)
    policy.reserve(450, until=10, now=0)
    assert policy.spare(telling(2000), NOTHING, size=100, now=1) == 50


def test_what_was_granted_and_is_not_used_yet_is_not_spare() -> None:
    policy = calm_policy(2000)
    assert policy.spare(telling(2000), Holdings(granted=450, used=0), size=100, now=0) == 50
