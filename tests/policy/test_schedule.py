"""Turns by example, and against the bound that the theory promises, on random workloads."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexserve.policy.schedule import Lane, Turns


def lane(model, active=0, waiting=0, oldest=None, priority=0, missing=0.0):
    return Lane(model, active, waiting, oldest, priority, missing)


def test_nobody_has_a_turn_when_nobody_has_work():
    turns = Turns()
    assert turns.next([], 0.0) is None
    assert turns.next([lane("a"), lane("b", missing=1.0)], 1.0) is None


def test_two_resident_models_alternate_turn_by_turn():
    turns = Turns()
    lanes = [lane("a", active=1), lane("b", active=3)]
    order = [turns.next(lanes, now / 10) for now in range(6)]
    assert order in (list("ababab"), list("bababa"))


def test_a_busy_model_keeps_the_engine_while_another_waits_a_short_time():
    turns = Turns(patience=2.0)
    busy, other = lane("busy", active=1), lane("other", waiting=1, oldest=0.1, missing=0.5)
    assert turns.next([busy], 0.0) == "busy"
    assert [turns.next([busy, other], now) for now in (0.2, 1.0, 2.0, 2.5)] == ["busy"] * 4
    assert turns.next([busy, other], 2.7) == "other", "patience and the cost of the switch have passed"


def test_the_longer_a_switch_takes_the_longer_it_waits():
    for missing in (0.5, 5.0):
        turns = Turns(patience=2.0)
        busy, other = lane("busy", active=1), lane("other", waiting=1, oldest=0.0, missing=missing)
        assert turns.next([busy], 0.0) == "busy"
        assert turns.next([busy, other], 2.0 + missing - 0.1) == "busy"
        assert turns.next([busy, other], 2.0 + missing + 0.1) == "other"


def test_an_idle_engine_switches_at_once():
    turns = Turns()
    assert turns.next([lane("a", active=1)], 0.0) == "a"
    assert turns.next([lane("a"), lane("b", waiting=1, oldest=0.1, missing=9.0)], 0.2) == "b"


def test_a_switch_is_followed_by_at_least_as_long_a_time_of_work():
    turns = Turns(patience=0.0, quantum=1.0)
    a = lane("a", active=1, missing=5.0)
    b = lane("b", active=1, missing=5.0)
    assert turns.next([a, b], 0.0) == "b"
    there = dataclasses.replace(b, missing=0.0)
    assert [turns.next([a, there], now) for now in (5.0, 7.0, 9.9)] == ["b"] * 3
    assert turns.next([a, there], 10.1) == "a"


def test_a_higher_priority_need_not_be_patient_but_an_equal_one_must():
    turns = Turns(patience=60.0)
    busy = lane("busy", active=1)
    urgent = lane("urgent", waiting=1, oldest=0.0, priority=1, missing=3.0)
    assert turns.next([busy], 0.0) == "busy"
    assert turns.next([busy, dataclasses.replace(urgent, priority=0)], 0.1) == "busy"
    assert turns.next([busy, urgent], 0.2) == "urgent"


def test_of_resident_models_the_higher_priority_has_the_turns_until_the_other_has_aged():
    turns = Turns(aging=10.0)
    lanes = [lane("high", active=1, priority=1), lane("low", active=1)]
    order = [turns.next(lanes, float(now)) for now in range(25)]
    assert order.count("low") == 2
    assert order[:10] == ["high"] * 10


def test_an_aged_model_that_has_the_engine_at_last_is_not_thrown_out_at_once():
    turns = Turns(patience=1.0, quantum=4.0, aging=5.0)
    high = lane("high", active=1, priority=1, missing=0.0)
    low = lane("low", waiting=1, oldest=0.0, missing=2.0)
    now = 0.0
    while turns.next([high, low], now) == "high":
        now += 0.5
    assert now <= 10.0
    gone, there = dataclasses.replace(high, missing=2.0), lane("low", active=1)
    assert turns.next([gone, there], now + 3.0) == "low"


def test_requests_queued_behind_their_own_model_do_not_make_it_hungrier():
    turns = Turns()
    lanes = [lane("a", active=1, waiting=5, oldest=-100.0), lane("b", active=1)]
    winners = [turns.next(lanes, now / 10) for now in range(10)]
    assert (winners.count("a"), winners.count("b")) == (5, 5)


def test_a_clock_that_jumps_back_starves_nobody():
    turns = Turns()
    lanes = [lane("a", active=1), lane("b", active=1)]
    for now in (1000.0, 1000.1):
        turns.next(lanes, now)
    order = [turns.next(lanes, now / 10) for now in range(10)]
    assert order.count("a") == order.count("b") == 5


LANES = st.lists(
    st.builds(
        Lane,
        model=st.sampled_from("abcdef"),
        active=st.integers(0, 2),
        waiting=st.integers(0, 2),
        oldest=st.none() | st.floats(-5, 0),
        priority=st.integers(0, 2),
        missing=st.sampled_from([0.0, 0.3, 4.0, 12.0]),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda each: each.model,
)


@given(
    lanes=LANES,
    lengths=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5),
    room=st.integers(1, 4),
    patience=st.sampled_from([0.0, 2.0, 8.0]),
)
def test_every_model_with_work_has_a_turn_within_the_bound(lanes, lengths, room, patience):
    """An engine that holds `room` models, swaps at their cost, and never runs out of work."""
    turns = Turns(patience=patience, quantum=1.0, aging=5.0)
    busy = [each.model for each in lanes if each.has_work]
    cost = {each.model: each.missing for each in lanes}
    priorities = [each.priority for each in lanes if each.has_work]
    if not busy:
        assert turns.next(lanes, 0.0) is None
        return
    bound = turns.bound(
        lanes=len(busy),
        priorities=max(priorities) - min(priorities),
        missing=max(cost[model] for model in busy),
        turn=max(lengths),
    )
    held: list[str] = []  # resident models, the one used last at the end
    served = dict.fromkeys(busy, 0.0)
    now = 0.0
    for step in range(400):
        seen = [
            dataclasses.replace(each, missing=0.0 if each.model in held else cost[each.model])
            for each in lanes
        ]
        winner = turns.next(seen, now)
        assert winner is not None
        assert winner in busy
        now += (0.0 if winner in held else cost[winner]) + lengths[step % len(lengths)]
        held = ([model for model in held if model != winner] + [winner])[-room:]
        served[winner] = now
        assert all(now - when <= bound for when in served.values())


@given(lanes=LANES, steps=st.lists(st.floats(0.0, 5.0), max_size=20))
def test_turns_do_not_depend_on_the_order_in_which_lanes_are_named(lanes, steps):
    forward, backward = Turns(), Turns()
    now = 0.0
    for step in steps:
        now += step
        assert forward.next(lanes, now) == backward.next(lanes[::-1], now)


@pytest.mark.parametrize("wrong", [{"patience": -1.0}, {"quantum": -1.0}, {"aging": 0.0}])
def test_times_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="negative"):
        Turns(**wrong)


def test_no_patience_no_quantum_and_fast_aging_make_sense():
    assert Turns(patience=0.0, quantum=0.0, aging=0.5).next([lane("a", active=1)], 0.0) == "a"


def test_the_bound_is_that_of_the_theory():
    aged = Turns(patience=2.0, quantum=1.0, aging=10.0)
    assert aged.bound(lanes=4, priorities=2, missing=3.0, turn=0.5) == 10 * 3 + 4 * 3 * (3 + 3 + 0.5)
    patient = Turns(patience=60.0, quantum=10.0, aging=1.0)
    assert patient.bound(lanes=2, priorities=0, missing=3.0, turn=0.5) == (60 + 3) + 2 * 1 * (3 + 10 + 0.5)


def test_age_alone_causes_no_restore_before_patience_is_at_its_end():
    turns = Turns(patience=100.0, aging=10.0)
    busy, old = (
        lane("busy", active=1, priority=5),
        lane("old", waiting=1, oldest=0.0, priority=3, missing=1.0),
    )
    assert turns.next([busy], 0.0) == "busy"
    assert turns.next([busy, old], 30.0) == "busy"


def test_of_three_resident_models_with_queues_each_has_its_turn():
    turns = Turns()
    lanes = [lane(model, waiting=1, oldest=0.0) for model in "abc"]
    order = [turns.next(lanes, float(now)) for now in range(1, 7)]
    assert sorted(map(str, order)) == list("aabbcc")
