"""Turns at the NPU: nobody starves, deadlines are kept, and who is alone is left alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexserve.policy.npu_share import LINGER, PAUSE, TURN, NpuShare


def test_it_is_held_as_long_as_products_come_and_nobody_else_wants_it():
    share = NpuShare()
    share.came(0.0)
    for tick in range(100):
        share.used(tick * 0.1)
        assert share.leave_at() > tick * 0.1
    assert share.leave_at() == pytest.approx(9.9 + LINGER)


def test_it_goes_when_it_was_of_no_use():
    share = NpuShare()
    share.came(5.0)
    assert share.leave_at() == pytest.approx(5.0 + LINGER)
    share.left(6.0)
    assert share.may_ask(6.0), "nobody wanted it"


def test_a_turn_is_used_up_when_others_want_it():
    share = NpuShare()
    share.came(0.0)
    share.wanted_back(0.01, deadline=10.0)
    share.used(0.09)
    assert share.leave_at() == pytest.approx(TURN)


def test_who_had_its_turn_leaves_at_once():
    share = NpuShare()
    share.came(0.0)
    share.used(3.0)
    share.wanted_back(3.0, deadline=10.0)
    assert share.leave_at() <= 3.0


def test_who_does_nothing_with_it_leaves_soon_when_others_want_it():
    share = NpuShare()
    share.came(0.0)
    share.used(0.02)
    share.wanted_back(0.03, deadline=10.0)
    assert share.leave_at() == pytest.approx(0.02 + PAUSE)


def test_after_a_turn_it_is_the_others():
    share = NpuShare()
    share.came(0.0)
    share.wanted_back(0.0, deadline=1.0)
    share.left(TURN)
    assert not share.may_ask(TURN + 0.9 * TURN)
    assert share.may_ask(2 * TURN)


@settings(deadline=None)
@given(st.floats(0, 10), st.floats(0, 10), st.lists(st.floats(0.001, 10), min_size=1, max_size=4))
def test_a_deadline_is_kept_with_something_to_spare(came: float, later: float, waits: list[float]):
    share = NpuShare()
    share.came(came)
    now = came + later
    share.used(now)
    for wait in waits:
        share.wanted_back(now, now + wait)
        assert share.leave_at() <= now + 0.75 * wait + 1e-9
        abort = share.abort_at()
        assert abort is not None
        assert abort <= now + 0.9375 * wait + 1e-9
        assert abort >= share.leave_at() - 1e-9, "a job is given the margin to end in"
    assert share.leave_at() <= now + 0.75 * min(waits) + 1e-9, "a later demand postponed an earlier one"


def test_what_failed_is_left_alone_for_a_while():
    share = NpuShare()
    share.came(0.0)
    share.left(1.0)
    share.failed(1.0)
    assert not share.may_ask(5.0)
    assert share.may_ask(20.0)


def test_a_job_that_would_not_end_in_time_does_not_fit_and_may_end_the_turn():
    share = NpuShare()
    share.came(0.0)
    assert share.fits(0.0, 1000.0), "nobody else wants it"
    share.wanted_back(0.0, deadline=0.05)
    share.used(0.01)
    assert share.fits(0.01, 0.01)
    assert share.leave_at() > 0.01
    assert not share.fits(0.02, 0.04)
    assert share.leave_at() > 0.02
    share.end_turn(0.02)
    assert share.leave_at() <= 0.02


def test_the_other_world_has_it_no_longer_than_it_was_held():
    share = NpuShare()
    share.came(0.0)
    share.wanted_back(0.0, deadline=0.02)
    share.left(0.015)
    assert not share.may_ask(0.0299)
    assert share.may_ask(0.0301)


@pytest.mark.parametrize("deadline", [0.02, 0.05, 1.0])
def test_both_get_half_of_it_when_both_always_want_it(deadline: float):
    share, now, ours, step = NpuShare(), 0.0, 0.0, 0.001
    held = False
    while now < 60:
        if not held and share.may_ask(now):
            held = True
            share.came(now)
            share.wanted_back(now, now + deadline)
        share.used(now)
        if held and now >= share.leave_at():
            held = False
            share.left(now)
        ours += step * held
        now += step
    assert ours / now == pytest.approx(0.5, abs=0.05)


def test_a_job_that_ends_in_the_last_moment_fits():
    share = NpuShare()
    share.came(0.0)
    share.wanted_back(0.0, deadline=16.0)
    assert share.fits(14.0, 1.0)
    assert not share.fits(14.0, 1.1)


def test_a_turn_that_is_over_is_not_made_longer_by_a_job_that_does_not_fit():
    share = NpuShare()
    share.came(0.0)
    share.used(3.0)
    share.wanted_back(3.0, deadline=10.0)
    share.end_turn(5.0)
    assert share.leave_at() == TURN


def test_of_two_demands_the_earlier_deadline_counts():
    share = NpuShare()
    share.came(0.0)
    share.used(0.09)
    share.wanted_back(0.0, deadline=0.04)
    share.wanted_back(0.0, deadline=10.0)
    assert share.leave_at() == 0.03
    assert share.abort_at() == 0.0375
