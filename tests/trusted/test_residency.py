"""Residency: a graph computes the same whatever is taken away, refused, slow or damaged meanwhile."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import pytest
from fake_engine import CHUNK, FakeGraph, FakeSource, Machine

from flexserve.errors import CancelledError, GrantRefusedError, StoredDataError
from flexserve.trusted.weights.job import RestoreStats
from flexserve.trusted.weights.states import RESIDENT
from flexserve.units import format_size

COUNT = 22  # chunks of a machine's model
READS = [[0], [1, 2], [], [3], [4, 5, 6], [7], [8, 9], [10, 11], [12, 13], [14], [15, 16], [17], [18, 19]]
ALL = [[chunk] for chunk in range(COUNT)]


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.close()


def until(condition, *, patience: threading.Event | None = None) -> None:
    """Wait for a condition; the test's own time limit ends a wait that never does."""
    pause = patience or threading.Event()
    while not condition():
        pause.wait(0.001)


def test_a_model_with_nothing_in_memory_computes_as_one_that_is_whole(machine: Machine):
    assert machine.compute(READS) == machine.expected(READS)
    until(lambda: machine.weights.whole)
    assert machine.compute(READS) == machine.expected(READS)


def test_a_request_learns_what_its_restore_took(machine: Machine):
    machine.source.delay = 0.001
    stats = RestoreStats()
    machine.residency.restore(machine.weights, stats)
    assert stats.restored == machine.weights.size
    assert min(stats.allocate, stats.load, stats.decrypt) > 0
    again = RestoreStats()
    machine.residency.restore(machine.weights, again)
    assert again == RestoreStats()


def test_chunks_come_in_the_order_in_which_the_graph_reads_them():
    machine = Machine(threads=1)
    reads = [[7], [3], [12]]
    machine.compute(reads)
    machine.close()
    assert machine.source.restored[:3] == [(0, 7), (0, 3), (0, 12)]


@pytest.mark.parametrize(("cores", "beside"), [(2, 0), (3, 1), (4, 2)])
def test_loaders_run_beside_compute_on_cores_that_it_leaves_alone(
    monkeypatch: pytest.MonkeyPatch, cores: int, beside: int
):
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(cores)))
    machine = Machine(threads=2)
    fresh: list[int] = []  # chunks that came while the first node ran

    def on_node(node: int) -> None:
        if node == 0:
            time.sleep(0.02)  # what was claimed comes
            before = len(machine.source.restored)
            time.sleep(0.05)
            fresh.append(len(machine.source.restored) - before)

    machine.source.delay = 0.02
    assert machine.compute(READS, on_node) == machine.expected(READS)
    machine.close()
    assert (fresh[0] > 0) == (beside > 0)


def test_loaders_have_all_cores_while_a_slice_waits_for_another_engine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1})
    machine = Machine(threads=2)

    def on_node(node: int) -> None:
        if node == 0:
            with machine.residency.resting():
                until(lambda: machine.weights.whole)

    assert machine.compute(READS, on_node) == machine.expected(READS)
    machine.close()


def test_what_the_graph_does_not_read_is_loaded_in_the_background(machine: Machine):
    machine.compute([[0]])
    until(lambda: machine.weights.whole)
    assert machine.weights.resident == machine.weights.size


def test_the_order_of_use_is_known_before_anything_was_recalled(machine: Machine):
    machine.residency.restore(machine.weights, RestoreStats())
    machine.compute([[7], [3], [12]])
    assert machine.weights.usual[:3] == [7, 3, 12]


def test_a_recall_between_two_graphs_is_made_good(machine: Machine):
    for count in (1, 7, COUNT, COUNT):
        assert machine.compute(READS) == machine.expected(READS)
        machine.recall(count)
    assert machine.compute(READS) == machine.expected(READS)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("seed", range(4))
def test_recalls_at_random_moments_of_many_graphs_change_nothing(seed: int):
    machine = Machine(delay=0.0005)
    rng, over = random.Random(seed), threading.Event()
    failures: list[BaseException] = []

    def recall() -> None:
        try:
            while not over.wait(rng.random() * 0.004):
                machine.recall(rng.randrange(1, COUNT))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=recall)
    thread.start()
    try:
        for _ in range(40):
            reads = [rng.sample(range(COUNT), rng.randrange(4)) for _ in range(12)]
            assert machine.compute(reads) == machine.expected(reads)
    finally:
        over.set()
        thread.join()
    machine.close()
    assert not failures


@pytest.mark.timeout(60)
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_model_ten_times_larger_than_the_grants_streams_through_them(threads: int):
    machine = Machine(chunks=(40, 40), budget=8 * CHUNK, threads=threads, delay=0.0005)
    reads = [[chunk] for chunk in range(80)]
    for _ in range(3):
        assert machine.compute(reads) == machine.expected(reads)
    assert machine.budget.granted <= 8 * CHUNK
    machine.close()


@pytest.mark.timeout(60)
def test_streaming_goes_on_when_chunks_arrive_in_the_worst_order():
    # Four loaders fill all the memory with what is wanted later, while the first chunk is slow.
    machine = Machine(chunks=(30,), budget=4 * CHUNK, threads=4)
    restore, slow = machine.source.restore, threading.Event()

    def first_is_slow(buffer: int, index: int, target: memoryview) -> float:
        if index == 0:
            slow.wait(0.05)
        return restore(buffer, index, target)

    machine.source.restore = first_is_slow  # type: ignore[method-assign]
    machine.weights.source = machine.source
    reads = [[chunk] for chunk in range(30)]
    for _ in range(5):
        assert machine.compute(reads) == machine.expected(reads)
    machine.close()


@pytest.mark.timeout(60)
def test_recalls_while_a_model_streams_change_nothing():
    machine = Machine(chunks=(40,), budget=6 * CHUNK, delay=0.0002)
    reads = [[chunk] for chunk in range(40)]
    over = threading.Event()

    def recall() -> None:
        while not over.wait(0.002):
            machine.recall(2)

    thread = threading.Thread(target=recall)
    thread.start()
    try:
        for _ in range(5):
            assert machine.compute(reads) == machine.expected(reads)
    finally:
        over.set()
        thread.join()
    machine.close()


def test_grants_that_hold_not_even_one_node_are_refused_and_the_next_graph_may_succeed():
    machine = Machine(budget=2 * CHUNK)
    with pytest.raises(GrantRefusedError, match=f"needs {format_size(4 * CHUNK)} of memory at once"):
        machine.compute([[0, 1, 2, 3]])
    machine.budget.limit = 8 * CHUNK
    assert machine.compute([[0, 1, 2, 3]]) == machine.expected([[0, 1, 2, 3]])
    machine.close()


def test_a_recall_after_the_rest_was_refused_is_still_noticed():
    # The graph fits, the rest of the model does not; then what the graph needs next is taken.
    machine = Machine(budget=4 * CHUNK)
    reads = [[0], [], [], [], [1], [], [], [], [2]]

    def take_away(node: int) -> None:
        if node == 2:
            until(lambda: machine.budget.refusals > 0)
            thread.start()

    thread = threading.Thread(target=lambda: machine.recall(COUNT))
    assert machine.compute(reads, take_away) == machine.expected(reads)
    thread.join()
    machine.close()


def test_a_damaged_chunk_stops_the_request_before_the_node_that_reads_it(machine: Machine):
    machine.source.damaged.add((0, 8))
    graph = FakeGraph(machine, READS)
    with pytest.raises(StoredDataError):
        machine.residency.compute(machine.weights, graph, RestoreStats())
    assert max(graph.ran, default=-1) < READS.index([8, 9])
    assert machine.weights.states[8] != RESIDENT


def test_a_damaged_chunk_is_never_in_memory_afterwards_and_a_sound_one_serves_again(machine: Machine):
    machine.source.damaged.add((1, 0))
    for _ in range(3):
        with pytest.raises(StoredDataError):
            machine.compute([[13]])
        assert machine.weights.states[13] != RESIDENT
    machine.source.damaged.clear()
    assert machine.compute(READS) == machine.expected(READS)


def test_a_request_that_waits_for_memory_can_be_cancelled(machine: Machine):
    machine.source.hold.clear()
    outcome: list[BaseException] = []

    def compute() -> None:
        try:
            machine.compute(READS)
        except CancelledError as error:
            outcome.append(error)

    thread = threading.Thread(target=compute)
    thread.start()
    until(lambda: machine.flexmem.committed(machine.weights.parts[0].arena) > 0)
    machine.residency.cancel()
    thread.join()
    assert len(outcome) == 1
    machine.source.hold.set()
    assert machine.compute(READS) == machine.expected(READS)


def test_cancelling_when_nothing_runs_does_nothing(machine: Machine):
    machine.residency.cancel()
    assert machine.compute(READS) == machine.expected(READS)


def test_retired_weights_are_left_alone_by_the_loaders(machine: Machine):
    machine.source.delay = 0.002
    machine.compute([[0]])  # loaders go on with the rest
    machine.budget.returned(machine.residency.retire(machine.weights))
    restored = len(machine.source.restored)
    for part in machine.weights.parts:
        assert machine.flexmem.committed(part.arena) == 0
        machine.budget.returned(machine.flexmem.free(part.arena))
    machine.weights = machine.model((5,), FakeSource())
    assert machine.compute([[0], [4]]) == machine.expected([[0], [4]])
    assert len(machine.source.restored) == restored


def test_evicting_what_is_absent_returns_nothing(machine: Machine):
    assert machine.residency.evict(machine.weights, range(COUNT)) == 0


def test_no_slice_is_empty_when_an_eviction_found_nothing_while_compute_waited(machine: Machine):
    machine.source.hold.clear()
    outcome: list[str] = []
    thread = threading.Thread(target=lambda: outcome.append(machine.compute(READS)))
    thread.start()
    until(lambda: machine.flexmem.committed(machine.weights.parts[0].arena) > 0)
    for _ in range(20):
        assert machine.residency.evict(machine.weights, range(COUNT)) == 0
        time.sleep(0.001)
    machine.source.hold.set()
    thread.join()
    assert outcome == [machine.expected(READS)]


def test_the_end_of_the_layers_is_evicted_first(machine: Machine):
    machine.compute(ALL)
    until(lambda: machine.weights.whole)
    assert machine.weights.eviction_order() == list(range(COUNT))[::-1]


@pytest.mark.timeout(120)
def test_no_wake_up_is_ever_lost():
    # Many short graphs from nothing: a loader's notice that comes at the wrong moment hangs one.
    machine = Machine(chunks=(6,), threads=3)
    for _ in range(300):
        assert machine.compute([[0], [3], [5]]) == machine.expected([[0], [3], [5]])
        machine.recall(6)
    machine.close()
