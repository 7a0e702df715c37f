"""Prefetch: weights come in ahead of need, and a request never notices, whatever becomes of it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import pytest
from fake_engine import CHUNK, FakeSource, Machine
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from flexserve.errors import GrantRefusedError, StoredDataError
from flexserve.trusted.weights.chunks import Weights
from flexserve.trusted.weights.states import ABSENT, RESIDENT

COUNT = 22  # chunks of a machine's model
READS = [[0], [1, 2], [], [3], [4, 5, 6], [7], [8, 9], [10, 11], [12, 13], [14], [15, 16], [17], [18, 19]]


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.close()


def until(condition) -> None:
    """Wait for a condition; the test's own time limit ends a wait that never does."""
    pause = threading.Event()
    while not condition():
        pause.wait(0.001)


def prefetch(machine: Machine, weights: Weights, chunks) -> None:
    """Prefetch and wait for its end, whichever it is."""
    machine.residency.prefetch(weights, list(chunks))
    until(lambda: not machine.residency.prefetching)


def test_chunks_come_in_the_order_in_which_they_were_named():
    machine = Machine(threads=1)
    prefetch(machine, machine.weights, [7, 3, 20, 0])
    assert machine.source.restored == [(0, 7), (0, 3), (1, 7), (0, 0)]
    assert machine.weights.resident == 4 * CHUNK
    machine.close()


def test_a_model_that_was_prefetched_whole_computes_without_restoring_anything(machine: Machine):
    prefetch(machine, machine.weights, range(COUNT))
    assert machine.weights.whole
    restored = len(machine.source.restored)
    assert machine.compute(READS) == machine.expected(READS)
    assert len(machine.source.restored) == restored


def test_what_is_in_memory_already_is_not_loaded_again(machine: Machine):
    prefetch(machine, machine.weights, [5, 6])
    prefetch(machine, machine.weights, [5, 6, 7])
    assert sorted(machine.source.restored) == [(0, 5), (0, 6), (0, 7)]


def test_no_chunk_is_prefetched_while_a_request_waits_for_one(machine: Machine):
    source = FakeSource()
    other = machine.model((6,), source)
    machine.source.hold.clear()
    thread = threading.Thread(target=machine.compute, args=(READS,))
    thread.start()
    until(lambda: machine.flexmem.committed(machine.weights.parts[0].arena) > 0)
    machine.residency.prefetch(other, range(6))
    threading.Event().wait(0.05)
    assert source.restored == []
    assert machine.residency.prefetching
    machine.source.hold.set()
    thread.join()
    until(lambda: not machine.residency.prefetching)
    assert len(source.restored) == 6


def test_a_request_goes_before_a_prefetch_that_came_first():
    machine = Machine(threads=1)
    source = FakeSource()
    other = machine.model((6,), source)
    source.hold.clear()
    machine.residency.prefetch(other, range(6))
    until(lambda: machine.flexmem.committed(other.parts[0].arena) > 0)  # one chunk is claimed
    assert machine.compute(READS) == machine.expected(READS)
    assert source.restored == []
    source.hold.set()
    until(lambda: not machine.residency.prefetching)
    assert len(source.restored) == 6
    machine.close()


def test_a_request_may_need_the_very_chunk_that_is_being_prefetched(machine: Machine):
    machine.source.delay = 0.003
    for _ in range(20):
        machine.residency.prefetch(machine.weights, range(COUNT))
        assert machine.compute(READS) == machine.expected(READS)
        machine.recall(COUNT)


def test_a_newer_prefetch_replaces_an_older_one(machine: Machine):
    source = FakeSource()
    other = machine.model((6,), source)
    machine.source.hold.clear()
    machine.residency.prefetch(machine.weights, range(COUNT))
    until(lambda: machine.flexmem.committed(machine.weights.parts[0].arena) > 0)
    machine.residency.prefetch(other, range(6))
    machine.source.hold.set()
    until(lambda: not machine.residency.prefetching)
    assert len(source.restored) == 6
    assert len(machine.source.restored) <= 2, "at most what was claimed"


def test_a_prefetch_of_nothing_ends_the_one_under_way(machine: Machine):
    machine.source.hold.clear()
    machine.residency.prefetch(machine.weights, range(COUNT))
    machine.residency.prefetch(machine.weights, [])
    assert not machine.residency.prefetching
    machine.source.hold.set()


def test_evicting_a_model_ends_its_prefetch_and_gives_back_what_was_in_hand(machine: Machine):
    machine.source.hold.clear()
    machine.residency.prefetch(machine.weights, range(COUNT))
    until(lambda: machine.flexmem.committed(machine.weights.parts[0].arena) == 2 * CHUNK)
    assert machine.recall(COUNT) >= 0
    machine.source.hold.set()
    until(lambda: not machine.residency.prefetching)
    assert all(machine.weights.states == ABSENT)
    assert machine.flexmem.committed(machine.weights.parts[0].arena) == 0


def test_evicting_another_model_does_not_end_a_prefetch(machine: Machine):
    other = machine.model((6,), FakeSource())
    prefetch(machine, other, range(6))
    machine.source.hold.clear()
    machine.residency.prefetch(machine.weights, range(COUNT))
    machine.budget.returned(machine.residency.evict(other, range(6)))
    machine.source.hold.set()
    until(lambda: not machine.residency.prefetching)
    assert machine.weights.whole


def test_a_retired_model_is_left_alone_by_its_prefetch(machine: Machine):
    source = FakeSource(delay=0.002)
    for _ in range(5):
        other = machine.model((30,), source)
        machine.residency.prefetch(other, range(30))
        until(lambda: source.restored)
        machine.budget.returned(machine.residency.retire(other))
        restored = len(source.restored)
        assert machine.flexmem.committed(other.parts[0].arena) == 0
        machine.budget.returned(machine.flexmem.free(other.parts[0].arena))
        assert not machine.residency.prefetching
        assert len(source.restored) == restored


def test_a_refused_grant_ends_a_prefetch_without_a_word():
    machine = Machine(budget=5 * CHUNK)
    prefetch(machine, machine.weights, range(COUNT))
    assert machine.weights.resident == 5 * CHUNK
    machine.budget.limit = 1 << 30
    assert machine.compute(READS) == machine.expected(READS)
    machine.close()


def test_a_damaged_chunk_ends_a_prefetch_and_the_request_that_reads_it_hears_of_it():
    machine = Machine(threads=1)
    machine.source.damaged.add((0, 2))
    prefetch(machine, machine.weights, range(COUNT))
    assert machine.source.restored == [(0, 0), (0, 1)]
    with pytest.raises(StoredDataError):
        machine.compute([[2]])
    machine.close()


def test_what_is_granted_for_a_request_to_come_is_not_taken_by_a_prefetch():
    machine = Machine()
    other = machine.model((12,), FakeSource())
    with machine.residency.expecting():
        machine.flexmem.grant(10 * CHUNK)
        machine.residency.prefetch(other, range(12))
        time.sleep(0.1)
        assert other.resident == 0
    until(lambda: other.whole)
    machine.close()


def test_grants_that_are_kept_are_not_taken_by_a_prefetch(machine: Machine):
    prefetch(machine, machine.weights, range(COUNT))
    other = machine.model((30,), FakeSource(delay=0.001))
    machine.residency.prefetch(other, range(30))
    size = machine.residency.evict(machine.weights, range(10), keep_grants=True)
    assert size == 10 * CHUNK
    until(lambda: not machine.residency.prefetching)
    assert other.resident < 30 * CHUNK


@pytest.mark.timeout(60)
@pytest.mark.parametrize("seed", range(3))
def test_recalls_and_prefetches_at_random_moments_change_no_result(seed: int):
    machine = Machine(delay=0.0005)
    rng, over = random.Random(seed), threading.Event()
    failures: list[BaseException] = []

    def disturb() -> None:
        try:
            while not over.wait(rng.random() * 0.003):
                if rng.random() < 0.5:
                    machine.recall(rng.randrange(1, COUNT))
                else:
                    machine.residency.prefetch(
                        machine.weights, rng.sample(range(COUNT), rng.randrange(COUNT))
                    )
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=disturb)
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


chunks = st.lists(st.integers(0, 11), max_size=12, unique=True)
places = st.integers(0, 1)


class TwoModels(RuleBasedStateMachine):
    """Two models in a small budget, and real threads: results are right, and no chunk is ever lost."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine(chunks=(7, 5), budget=20 * CHUNK, delay=0.0005)
        self.models = [self.machine.weights, self.machine.model((12,), FakeSource(delay=0.0005))]

    @rule(place=places, chunks=chunks)
    def prefetch(self, place: int, chunks: list[int]) -> None:
        self.machine.residency.prefetch(self.models[place], chunks)

    @rule(place=places, reads=st.lists(chunks, max_size=4))
    def compute(self, place: int, reads: list[list[int]]) -> None:
        self.machine.weights = self.models[place]
        with self.machine.residency.expecting():
            idle = self.models[1 - place]
            missing = self.machine.residency.missing(self.machine.weights).needed
            self.make_way(idle, missing - self.machine.flexmem.grant(missing))
            try:
                assert self.machine.compute(reads) == self.machine.expected(reads)
            except GrantRefusedError as refused:  # by an OS that has less, or after other graphs than this
                if self.make_way(idle, refused.missing) >= refused.missing:
                    assert self.machine.compute(reads) == self.machine.expected(reads)
                else:
                    assert self.machine.budget.limit < 20 * CHUNK

    def make_way(self, idle: Weights, size: int) -> int:
        """Take `size` bytes from the other model, as the memory manager does; return the bytes."""
        victims = idle.eviction_order()[: max(0, -(-size // CHUNK))]
        return self.machine.residency.evict(idle, victims, keep_grants=True)

    @rule(place=places, count=st.integers(0, 12))
    def recall(self, place: int, count: int) -> None:
        self.machine.weights = self.models[place]
        self.machine.recall(count)

    @rule(limit=st.integers(2, 24))
    def the_os_has_more_or_less_to_give(self, limit: int) -> None:
        self.machine.budget.limit = limit * CHUNK

    @rule()
    def the_prefetch_comes_to_its_end(self) -> None:
        until(lambda: not self.machine.residency.prefetching)

    @invariant()
    def whole_means_that_every_chunk_is_there(self) -> None:
        for weights in self.models:
            assert not weights.whole or all(weights.states == RESIDENT)

    def teardown(self) -> None:
        self.machine.close()


TestTwoModels = TwoModels.TestCase
TestTwoModels.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
