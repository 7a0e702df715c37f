"""What may be computed before its turn, next to a machine that computes and a reader who compares bytes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexserve.policy.offload import WINDOW, Conflicts, Pace, cut, job_work, shared_out

MEMORY = 24  # bytes
SOURCES = 3

spans = st.tuples(st.integers(0, MEMORY), st.integers(0, 6)).map(lambda s: (s[0], min(MEMORY, s[0] + s[1])))
nodes = st.lists(st.tuples(st.lists(spans, max_size=SOURCES), spans), min_size=2, max_size=14)

Nodes = list[tuple[list[tuple[int, int]], tuple[int, int]]]


def conflicts(graph: Nodes) -> Conflicts:
    reads = np.zeros((len(graph), SOURCES, 2), np.uint64)
    for index, (sources, _) in enumerate(graph):
        for slot, span in enumerate(sources):
            reads[index, slot] = span
    return Conflicts(reads, np.array([write for _, write in graph], np.uint64))


def computed(graph: Nodes, order: list[int]) -> bytes:
    """Run the nodes: each writes a digest of its number and of all it reads."""
    memory = bytearray(range(MEMORY))
    for node in order:
        sources, (start, stop) = graph[node]
        seen = bytes([node]) + b"".join(memory[a:b] for a, b in sources)
        memory[start:stop] = hashlib.sha256(seen).digest()[: stop - start]
    return bytes(memory)


@settings(deadline=None)
@given(nodes, st.integers(1, 3))
def test_what_runs_before_its_turn_changes_nothing(graph: Nodes, pending: int):
    pending = min(pending, len(graph) - 1)
    free = conflicts(graph).independent(range(pending), range(pending, len(graph)))
    rest = [node for node in range(pending, len(graph)) if node not in free]
    order = [*free, *range(pending), *rest]
    assert computed(graph, order) == computed(graph, list(range(len(graph))))


@settings(deadline=None)
@given(nodes, st.sets(st.integers(1, 14)))
def test_every_node_that_shares_nothing_with_one_left_behind_may_run(graph: Nodes, leave: set[int]):
    def bytes_of(*ranges: tuple[int, int]) -> set[int]:
        return {byte for start, stop in ranges for byte in range(start, stop)}

    behind, expected = [0], []
    for node in range(1, len(graph)):
        reads, write = bytes_of(*graph[node][0]), bytes_of(graph[node][1])
        conflict = node in leave or any(
            (reads | write) & bytes_of(graph[other][1]) or write & bytes_of(*graph[other][0])
            for other in behind
        )
        (behind if conflict else expected).append(node)
    assert conflicts(graph).independent([0], range(1, len(graph)), leave) == expected


def test_a_long_graph_is_looked_at_in_windows():
    graph: Nodes = [([], (0, 1)), *[([], (2, 3))] * (2 * WINDOW)]
    assert conflicts(graph).independent([0], range(1, len(graph))) == list(range(1, WINDOW + 1))
    assert conflicts(graph).independent([5], range(6, len(graph))) == []


def test_the_cpu_does_one_of_several_until_both_are_known():
    assert shared_out([4, 4, 4], Pace(), Pace(1.0)) == 2
    assert shared_out([4, 4, 4], Pace(1.0), Pace()) == 2
    assert shared_out([4], Pace(), Pace()) == 1


def test_a_job_has_as_much_work_as_takes_about_ten_milliseconds():
    assert job_work(Pace(1e-9)) == pytest.approx(1e7, rel=1e-6)
    assert job_work(Pace(1e-6)) == job_work(Pace(1.0)) > 1 << 20, "a job that is too small is all overhead"
    assert job_work(Pace()) >= job_work(Pace(1.0)), "while nothing is known"
    assert job_work(Pace(0.0)) == job_work(Pace()), "the clock could not tell how long the last one took"


def test_products_are_shared_out_by_speed():
    assert shared_out([4, 4], Pace(1.0), Pace(1.0)) == 1
    assert shared_out([4, 4], Pace(1.0), Pace(9.0)) == 2
    assert shared_out([4, 4, 4, 4], Pace(1.0), Pace(1.0)) == 2
    assert shared_out([4, 4, 4], Pace(9.0), Pace(0.1)) == 1, "the first one is the other engine's"


@settings(deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.floats(0.1, 10), st.floats(0.1, 10))
def test_sharing_out_is_never_slower_than_leaving_all_to_the_other(work: list[int], other: float, cpu: float):
    count = shared_out(work, Pace(other), Pace(cpu))
    assert 1 <= count <= len(work)
    assert max(sum(work[:count]) * other, sum(work[count:]) * cpu) <= sum(work) * other + 1e-9


def test_pace_follows_what_is_measured():
    pace = Pace()
    assert pace.expected(10) is None
    pace.note(10, 20.0)
    assert pace.expected(1) == 2.0
    for _ in range(40):
        pace.note(10, 5.0)
    assert abs((pace.expected(1) or 0) - 0.5) < 1e-6


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(1, 200))
def test_portions_cover_all_columns_once(columns: int, most: int):
    portions = list(cut(columns, most))
    assert [column for first, count in portions for column in range(first, first + count)] == list(
        range(columns)
    )
    assert all(count <= max(32, most) and first % 32 == 0 for first, count in portions)


def test_a_pace_is_the_mean_of_the_latest_measurement_and_what_was_known():
    pace = Pace()
    pace.note(1, 4.0)
    assert pace.expected(1) == 4.0
    pace.note(2, 4.0)
    assert pace.expected(2) == 6.0
    pace.note(0, 1.0)
    assert pace.expected(1) == 2.0, "no work counts as one multiplication"


def test_the_cpu_takes_a_product_that_it_ends_at_the_same_time_as_the_other_engine():
    assert shared_out([4, 4], Pace(1.0), Pace(2.0)) == 1
    assert shared_out([4, 4], Pace(1.0), Pace(2.1)) == 2


def test_portions_are_the_largest_whole_multiples():
    assert list(cut(200, 100)) == [(0, 96), (96, 96), (192, 8)]
    assert list(cut(40, 10)) == [(0, 32), (32, 8)], "never less than one multiple"
