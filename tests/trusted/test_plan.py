"""Restore plans next to a reference that walks the graph node by node, as a reader would by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flexserve.trusted.weights.plan import Needs, RestorePlan, stretch, usual_order
from flexserve.trusted.weights.states import ABSENT, EVICTING, LOADING, RESIDENT

SIZE = 8  # chunks
Reads = list[list[int]]  # what each node reads

GRAPHS = st.lists(st.lists(st.integers(0, SIZE - 1), max_size=3), min_size=1, max_size=10)
STATES = st.lists(st.sampled_from([ABSENT, LOADING, RESIDENT, EVICTING]), min_size=SIZE, max_size=SIZE)


def needs_of(reads: Reads) -> Needs:
    uses = [(node, chunk) for node, chunks in enumerate(reads) for chunk in chunks]
    nodes, chunks = zip(*uses, strict=True) if uses else ((), ())
    return Needs(len(reads), np.array(nodes, dtype=np.int32), np.array(chunks, dtype=np.int32))


def states_of(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.uint8)


def first_uses(reads: Reads, start: int = 0) -> list[int]:
    order: list[int] = []
    for chunks in reads[start:]:
        order += chunks
    return list(dict.fromkeys(order))


def plans(test: Callable[..., None]) -> Callable[..., None]:
    return given(reads=GRAPHS, values=STATES, start=st.integers(0, 9))(test)


@plans
def test_chunks_come_in_the_order_of_first_use_then_all_others_that_are_missing(reads, values, start):
    start %= len(reads)
    plan = RestorePlan(needs_of(reads), states_of(values), start)
    used = first_uses(reads, start)
    assert plan.order[: plan.needed] == used
    assert plan.missing == sum(values[g] != RESIDENT for g in used)
    rest = [g for g in range(SIZE) if values[g] != RESIDENT and g not in used]
    assert plan.order[plan.needed :] == rest


@plans
def test_the_rest_follows_in_the_models_usual_order(reads, values, start):
    start %= len(reads)
    usual = usual_order(needs_of(reads), SIZE)
    plan = RestorePlan(needs_of(reads), states_of(values), start, usual)
    rest = plan.order[plan.needed :]
    assert rest == [g for g in usual if g in rest]


@plans
def test_ready_lets_compute_go_exactly_as_far_as_what_is_loaded_allows(reads, values, start):
    start %= len(reads)
    plan = RestorePlan(needs_of(reads), states_of(values), start)
    for done in range(len(plan.order) + 1):
        there = set(plan.order[:done])
        blocked = [n for n in range(start, len(reads)) if not set(reads[n]) <= there]
        assert plan.ready(done) == (blocked[0] if blocked else len(reads))


@plans
def test_wanted_is_the_least_that_lets_a_node_run(reads, values, start):
    start %= len(reads)
    plan = RestorePlan(needs_of(reads), states_of(values), start)
    for node in range(start, len(reads)):
        done = plan.wanted(node)
        assert plan.ready(done) > node
        assert done == 0 or plan.ready(done - 1) <= node


@plans
def test_ready_and_wanted_never_go_back(reads, values, start):
    plan = RestorePlan(needs_of(reads), states_of(values), start % len(reads))
    ready = [plan.ready(done) for done in range(len(plan.order) + 1)]
    wanted = [plan.wanted(node) for node in range(len(reads))]
    assert ready == sorted(ready)
    assert wanted == sorted(wanted)


@plans
def test_the_chunk_to_pass_on_is_the_one_whose_next_use_is_farthest(reads, values, start):
    plan = RestorePlan(needs_of(reads), states_of(values), start % len(reads))
    for position in range(len(reads) + 1):
        ahead = reads[position:] + reads  # the graph runs again from its first node
        still_used = {chunk for chunks in reads[position:] for chunk in chunks}
        passed = [g for g in range(SIZE) if values[g] == RESIDENT and g not in still_used]
        next_use = {g: next((n for n, used in enumerate(ahead) if g in used), len(ahead)) for g in passed}
        victim = plan.passed(position, states_of(values))
        if not passed:
            assert victim is None
        else:
            assert victim is not None
            assert next_use[victim] == max(next_use.values())


def test_a_chunk_that_compute_still_needs_is_never_passed_on():
    plan = RestorePlan(needs_of([[0], [1], [0]]), states_of([RESIDENT] * SIZE), 0)
    assert plan.passed(2, states_of([RESIDENT, RESIDENT] + [ABSENT] * 6)) == 1
    assert plan.passed(2, states_of([RESIDENT] + [ABSENT] * 7)) is None


@given(reads=GRAPHS)
def test_the_usual_order_names_every_chunk_once_those_of_the_graph_first(reads):
    order = usual_order(needs_of(reads), SIZE)
    used = first_uses(reads)
    assert order[: len(used)] == used
    assert sorted(order) == list(range(SIZE))


def test_where_nothing_can_be_hidden_compute_waits_once():
    assert stretch(90, spare=0, idle=0.05) == 90


def test_where_loaders_wait_or_have_cores_of_their_own_compute_goes_on_early():
    assert stretch(90, spare=0, idle=0.9) == 30
    assert stretch(90, spare=1, idle=0.05) == 30
