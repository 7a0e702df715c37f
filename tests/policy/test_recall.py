"""Recall plans: the order of the laws, nothing of a running request, never more than asked."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexserve.policy.recall import Holding, Step, plan, protected
from flexserve.protocol.trusted_app import Kind


def idle_kv_in_a_sequence(holding: Holding) -> Holding:
    idle = holding.kind is Kind.KV and not holding.running
    return dataclasses.replace(holding, sequence=1) if idle else holding


HOLDINGS = st.lists(
    st.builds(
        Holding,
        model=st.sampled_from(["a", "b", "c"]),
        kind=st.sampled_from(Kind),
        size=st.integers(0, 100),
        running=st.booleans(),
        last_used=st.sampled_from([1.0, 2.0, 3.0]),
    ),
    max_size=9,
    unique_by=lambda holding: (holding.model, holding.kind),
).map(lambda holdings: [idle_kv_in_a_sequence(holding) for holding in holdings])
DEMANDS = st.integers(0, 1000)


def test_scratch_goes_first_then_cold_kv_then_weights_of_the_model_used_longest_ago():
    holdings = [
        Holding("new", Kind.WEIGHTS, 10, running=False, last_used=2),
        Holding("old", Kind.WEIGHTS, 10, running=False, last_used=1),
        Holding("old", Kind.KV, 10, running=False, last_used=1, sequence=0),
        Holding("new", Kind.SCRATCH, 10, running=False, last_used=2),
    ]
    assert [(step.kind, step.model) for step in plan(holdings, None)] == [
        (Kind.SCRATCH, "new"),
        (Kind.KV, "old"),
        (Kind.WEIGHTS, "old"),
        (Kind.WEIGHTS, "new"),
    ]


def test_weights_of_a_running_model_are_the_last_resort_and_go_between_slices():
    holdings = [
        Holding("busy", Kind.WEIGHTS, 100, running=True, last_used=0),
        Holding("idle", Kind.WEIGHTS, 30, running=False, last_used=9),
    ]
    assert plan(holdings, 50) == [
        Step("idle", Kind.WEIGHTS, 30, between_slices=False),
        Step("busy", Kind.WEIGHTS, 20, between_slices=True),
    ]


def idle(model: str, kind: Kind, size: int, last_used: float = 1.0) -> Holding:
    sequence = 0 if kind is Kind.KV else None
    return Holding(model, kind, size, running=False, last_used=last_used, sequence=sequence)


@pytest.mark.parametrize("demand", [None, 5])
def test_who_holds_nothing_gives_nothing(demand):
    assert plan([idle("a", kind, 0) for kind in Kind], demand) == []


def test_a_byte_that_is_missing_is_taken_and_none_beyond():
    holdings = [idle("a", Kind.SCRATCH, 10), idle("a", Kind.KV, 10), idle("a", Kind.WEIGHTS, 10)]
    sizes = [[step.size for step in plan(holdings, demand)] for demand in (0, 1, 10, 11, 20, 21)]
    assert sizes == [[], [10], [10], [10, 10], [10, 10], [10, 10, 1]]


def test_a_policy_says_the_order_also_when_all_that_is_idle_goes():
    holdings = [idle("old", Kind.WEIGHTS, 10, 1.0), idle("new", Kind.WEIGHTS, 20, 2.0)]
    steps = plan(holdings, None, victims=lambda _resident, _size: [(("new", None), 20), (("old", None), 10)])
    assert [(step.model, step.size) for step in steps] == [("new", 20), ("old", 10)]


def test_a_policy_is_not_asked_when_scratch_is_enough_or_nothing_is_there():
    def victims(resident, size):
        raise AssertionError("nothing is missing, or nothing is there")

    assert len(plan([idle("a", Kind.SCRATCH, 10), idle("a", Kind.WEIGHTS, 10)], 10, victims=victims)) == 1
    assert plan([], 10, victims=victims) == []
    assert plan([], None, victims=victims) == []


def brought_back(model: str, size: int, unasked: int, last_used: float) -> Holding:
    return Holding(model, Kind.WEIGHTS, size, running=False, last_used=last_used, unasked=unasked)


def taken(steps: list[Step]) -> list[tuple[str, Kind, int, bool]]:
    return [(step.model, step.kind, step.size, step.unasked) for step in steps]


def test_what_no_request_asked_for_goes_first_and_only_as_far_as_is_missing():
    holdings = [brought_back("a", 10, 4, 1.0), brought_back("b", 10, 4, 2.0), idle("a", Kind.SCRATCH, 5)]
    a, b = ("a", Kind.WEIGHTS), ("b", Kind.WEIGHTS)
    assert taken(plan(holdings, 1)) == [(*a, 1, True)]
    assert taken(plan(holdings, 6)) == [(*a, 4, True), (*b, 2, True)]
    assert taken(plan(holdings, 9)) == [(*a, 4, True), (*b, 4, True), ("a", Kind.SCRATCH, 5, False)]


def test_what_was_undone_is_not_taken_a_second_time():
    holdings = [brought_back("a", 10, 4, 1.0), idle("a", Kind.KV, 3, 0.5), idle("b", Kind.WEIGHTS, 10, 2.0)]
    rest = [("a", Kind.KV, 3, False), ("a", Kind.WEIGHTS, 6, False), ("b", Kind.WEIGHTS, 10, False)]
    assert taken(plan(holdings, None)) == [("a", Kind.WEIGHTS, 4, True), *rest]
    assert taken(plan(holdings, 14)) == [
        ("a", Kind.WEIGHTS, 4, True),
        *rest[:2],
        ("b", Kind.WEIGHTS, 1, False),
    ]


def test_no_more_is_undone_than_there_is_and_a_policy_is_not_asked_about_it_again():
    asked: list[dict[object, int]] = []

    def victims(resident, _size):
        asked.append(dict(resident))
        return []

    holdings = [brought_back("a", 10, 20, 1.0), idle("b", Kind.WEIGHTS, 10)]
    steps = plan(holdings, 15, victims=victims)
    assert taken(steps) == [("a", Kind.WEIGHTS, 10, True), ("b", Kind.WEIGHTS, 5, False)]
    assert asked == [{("b", None): 10}]


@given(holdings=HOLDINGS, demand=st.none() | DEMANDS)
def test_kv_and_scratch_of_a_running_request_are_never_touched(holdings, demand):
    running = {holding.model: set() for holding in holdings}
    for holding in holdings:
        if holding.running:
            running[holding.model].add(holding.kind)
    for step in plan(holdings, demand):
        busy = step.kind in running[step.model]
        assert step.between_slices is busy
        assert not busy or step.kind is Kind.WEIGHTS


@given(holdings=HOLDINGS)
def test_a_recall_without_a_number_takes_all_that_is_idle_and_nothing_else(holdings):
    steps = plan(holdings, None)
    assert {(step.model, step.kind, step.size) for step in steps} == {
        (h.model, h.kind, h.size) for h in holdings if h.size and not h.running
    }
    assert not any(step.between_slices for step in steps)


@given(holdings=HOLDINGS, demand=DEMANDS)
def test_weights_never_go_beyond_the_demand(holdings, demand):
    given_up = 0
    for step in plan(holdings, demand):
        assert given_up < demand, "a step after the demand was met"
        given_up += step.size
        if step.kind is Kind.WEIGHTS:
            assert given_up <= demand


@given(holdings=HOLDINGS, demand=DEMANDS)
def test_a_demand_is_met_whenever_there_is_enough_to_give(holdings, demand):
    untouchable = sum(h.size for h in holdings if h.running and h.kind is not Kind.WEIGHTS)
    available = sum(h.size for h in holdings) - untouchable
    assert sum(step.size for step in plan(holdings, demand)) >= min(demand, available)


@given(holdings=HOLDINGS, demand=st.none() | DEMANDS)
def test_no_step_gives_more_than_there_is_and_none_comes_twice(holdings, demand):
    sizes = {(h.model, h.kind): h.size for h in holdings}
    steps = plan(holdings, demand)
    assert len({(step.model, step.kind) for step in steps}) == len(steps)
    assert all(0 < step.size <= sizes[step.model, step.kind] for step in steps)


@given(holdings=HOLDINGS, demand=DEMANDS)
def test_the_plan_does_not_depend_on_the_order_in_which_holdings_are_named(holdings, demand):
    assert plan(holdings, demand) == plan(holdings[::-1], demand)


def test_with_a_policy_weights_and_kv_go_by_what_it_says_and_not_by_last_use():
    holdings = [
        Holding("old", Kind.WEIGHTS, 100, running=False, last_used=1),
        Holding("new", Kind.WEIGHTS, 100, running=False, last_used=2),
        Holding("new", Kind.KV, 5, running=False, last_used=2, sequence=3),
        Holding("new", Kind.KV, 6, running=False, last_used=1, sequence=4),
    ]
    offers = [(("new", None), 60), (("new", 3), 1), (("old", None), 30)]
    steps = plan(holdings, 95, victims=lambda resident, size: offers)
    assert [(step.kind, step.model, step.size, step.sequence) for step in steps] == [
        (Kind.WEIGHTS, "new", 60, None),
        (Kind.KV, "new", 5, 3),
        (Kind.WEIGHTS, "old", 30, None),
    ]


def test_what_no_request_asked_for_is_undone_before_scratch_goes():
    holdings = [
        Holding("a", Kind.SCRATCH, 10, running=False, last_used=1),
        Holding("a", Kind.WEIGHTS, 100, running=False, last_used=1, unasked=30),
        Holding("b", Kind.WEIGHTS, 100, running=True, last_used=1, unasked=50),
    ]
    assert plan(holdings, 20) == [Step("a", Kind.WEIGHTS, 20, between_slices=False, unasked=True)]
    assert plan(holdings, 50) == [
        Step("a", Kind.WEIGHTS, 30, between_slices=False, unasked=True),
        Step("a", Kind.SCRATCH, 10, between_slices=False),
        Step("a", Kind.WEIGHTS, 10, between_slices=False),
    ]
    assert sum(step.size for step in plan(holdings, None)) == 110


def test_a_policy_is_asked_about_idle_models_first_and_about_running_ones_only_for_the_rest():
    asked = []
    holdings = [
        Holding("busy", Kind.WEIGHTS, 100, running=True, last_used=9),
        Holding("idle", Kind.WEIGHTS, 30, running=False, last_used=1),
    ]

    def victims(resident, size):
        asked.append((dict(resident), size))
        return [(part, min(held, size)) for part, held in resident.items()]

    steps = plan(holdings, 50, victims=victims)
    assert asked == [({("idle", None): 30}, 50), ({("busy", None): 100}, 20)]
    assert [(step.model, step.size, step.between_slices) for step in steps] == [
        ("idle", 30, False),
        ("busy", 20, True),
    ]


PARTS = st.tuples(st.sampled_from(["a", "b", "c", "d"]), st.sampled_from([None, 1]))
OFFERS = st.lists(st.tuples(PARTS, st.integers(-5, 200)), max_size=5)


@given(holdings=HOLDINGS, demand=st.none() | DEMANDS, offers=OFFERS)
def test_whatever_a_policy_offers_the_demand_is_met_and_nobody_gives_what_he_has_not(
    holdings, demand, offers
):
    steps = plan(holdings, demand, victims=lambda resident, size: offers)
    sizes = {(h.model, h.kind): h.size for h in holdings}
    assert len({(step.model, step.kind) for step in steps}) == len(steps)
    assert all(0 < step.size <= sizes[step.model, step.kind] for step in steps)
    untouchable = sum(
        h.size for h in holdings if h.running and (demand is None or h.kind is not Kind.WEIGHTS)
    )
    available = sum(h.size for h in holdings) - untouchable
    wanted = available if demand is None else min(demand, available)
    assert sum(step.size for step in steps) >= wanted


@pytest.mark.parametrize("demand", [0, None])
def test_with_nothing_held_there_is_nothing_to_do(demand):
    assert plan([], demand) == []


def test_what_running_requests_use_counts_as_protected():
    holdings = [
        Holding("busy", Kind.KV, 5, running=True, last_used=1),
        Holding("idle", Kind.KV, 7, running=False, last_used=1),
    ]
    assert protected(holdings) == 5
