"""The loader: its threads make way for compute, go on after it, and move every chunk by the table."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from fake_engine import CHUNK, FakeSource, Machine

from flexserve.errors import CancelledError, StoredDataError
from flexserve.trusted.weights.fill import Filler
from flexserve.trusted.weights.job import RestoreJob, RestoreStats
from flexserve.trusted.weights.loader import Loader
from flexserve.trusted.weights.plan import Needs
from flexserve.trusted.weights.states import ABSENT, RESIDENT, ChunkState

COUNT = 22  # chunks of a machine's model


class Rig:
    """A loader for a machine on which compute needs every core, and whose source can be held."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.weights, self.source = self.machine.weights, self.machine.source
        threads = len(os.sched_getaffinity(0))
        self.loader = Loader(self.machine.flexmem, Filler(self.machine.flexmem), threads)

    def start(self) -> RestoreJob:
        """Have all chunks loaded for a graph whose node i reads chunk i."""
        chunks = np.arange(COUNT, dtype=np.int32)
        return self.loader.start(self.weights, Needs(COUNT, chunks, chunks), 0, RestoreStats())

    def start_held(self) -> RestoreJob:
        """Start, and return when a loader has claimed a chunk that it cannot fill yet."""
        self.source.hold.clear()
        job = self.start()
        until(lambda: self.machine.flexmem.committed(self.weights.parts[0].arena) > 0)
        return job

    def close(self) -> None:
        self.source.hold.set()
        self.loader.close()
        self.machine.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


def until(condition) -> None:
    """Wait for a condition; the test's own time limit ends a wait that never does."""
    pause = threading.Event()
    while not condition():
        pause.wait(0.001)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have compute wait for claimed chunks for longer than any test takes."""
    monkeypatch.setattr("flexserve.trusted.weights.loader._CLAIMED", 60)


@pytest.mark.usefixtures("patient")
def test_compute_begins_when_the_claimed_chunks_are_there(rig: Rig):
    begun, over = threading.Event(), threading.Event()

    def compute() -> None:
        with rig.loader.computing():
            begun.set()
            over.wait()

    rig.start_held()
    thread = threading.Thread(target=compute)
    thread.start()
    assert not begun.wait(0.1)
    rig.source.hold.set()
    assert begun.wait(10)
    assert 0 < rig.weights.table.count(ChunkState.RESIDENT) < COUNT, "no loader takes another meanwhile"
    over.set()
    thread.join()
    until(lambda: rig.weights.whole)


def test_compute_does_not_wait_long_for_a_slow_loader(rig: Rig):
    rig.start_held()
    with rig.loader.computing():  # or this hangs
        assert rig.weights.resident == 0


@pytest.mark.usefixtures("patient")
def test_compute_does_not_wait_for_a_loader_that_waits_for_memory(rig: Rig):
    rig.machine.budget.limit = 2 * CHUNK
    job = rig.start()
    until(lambda: job.short and rig.weights.resident == 2 * CHUNK)
    with rig.loader.computing():  # or this hangs
        assert rig.weights.resident == 2 * CHUNK
    rig.loader.stop(job)


def test_loaders_stand_still_during_a_slice_and_go_on_while_it_rests_and_after_it(rig: Rig):
    with rig.loader.computing():
        rig.start()
        threading.Event().wait(0.05)
        assert rig.weights.resident == 0
        with rig.loader.resting():
            until(lambda: rig.weights.resident > 0)
    until(lambda: rig.weights.whole)


def test_who_waits_for_a_job_goes_on_when_its_stretch_is_there(rig: Rig):
    job = rig.start()
    assert rig.loader.wait_beyond(job, 0) > 0
    assert rig.weights.states[0] == RESIDENT


def test_cancelling_wakes_who_waits_and_leaves_no_chunk_claimed(rig: Rig):
    job = rig.start_held()
    canceller = threading.Timer(0.05, rig.loader.cancel)
    canceller.start()
    with pytest.raises(CancelledError):
        rig.loader.wait_beyond(job, 0)
    canceller.join()
    rig.source.hold.set()
    until(lambda: not rig.weights.table.claimed)


def test_an_eviction_makes_the_job_stale_and_does_not_touch_what_loaders_claimed(rig: Rig):
    job = rig.start_held()
    claimed = rig.weights.table.claimed
    assert rig.loader.evict(rig.weights, range(COUNT)) == 0
    assert job.stale
    assert rig.weights.table.claimed == claimed
    rig.source.hold.set()
    until(lambda: not rig.weights.table.claimed)


def test_retiring_waits_for_claimed_chunks_and_leaves_nothing(rig: Rig):
    rig.start_held()
    releaser = threading.Timer(0.05, rig.source.hold.set)
    releaser.start()
    rig.machine.budget.returned(rig.loader.retire(rig.weights))
    releaser.join()
    assert set(rig.weights.states) == {ABSENT}
    assert rig.machine.flexmem.committed(rig.weights.parts[0].arena) == 0


@pytest.mark.timeout(60)
def test_retiring_hears_of_chunks_that_were_claimed_for_a_job_before_the_present_one(rig: Rig):
    rig.start_held()
    rig.start()
    releaser = threading.Timer(0.05, rig.source.hold.set)
    releaser.start()
    rig.machine.budget.returned(rig.loader.retire(rig.weights))  # or this hangs
    releaser.join()
    assert set(rig.weights.states) == {ABSENT}


@pytest.mark.timeout(60)
def test_retiring_hears_of_chunks_that_were_claimed_for_a_prefetch_before_the_present_one(rig: Rig):
    source = FakeSource()
    source.hold.clear()
    other = rig.machine.model((5,), source)
    rig.loader.prefetch(other, range(5))
    until(lambda: other.table.claimed)
    rig.loader.prefetch(rig.weights, [])
    releaser = threading.Timer(0.05, source.hold.set)
    releaser.start()
    rig.machine.budget.returned(rig.loader.retire(other))  # or this hangs
    releaser.join()
    assert set(other.states) == {ABSENT}


def test_a_prefetch_waits_while_the_job_has_something_to_load(rig: Rig):
    other = rig.machine.model((5,), FakeSource())
    rig.start_held()
    rig.loader.prefetch(other, range(5))
    threading.Event().wait(0.05)
    assert other.resident == 0
    rig.source.hold.set()
    until(lambda: other.whole)
    assert rig.weights.whole


@pytest.fixture
def ready(rig: Rig) -> Rig:
    """A rig whose model was evicted for others: its memory lies ready."""
    rig.loader.wait_beyond(rig.start(), 0)
    until(lambda: rig.weights.whole)
    rig.loader.evict(rig.weights, range(COUNT), keep_grants=True)
    rig.source.restored.clear()
    assert rig.machine.flexmem.ready() == COUNT * CHUNK
    return rig


def test_chunks_whose_memory_lies_ready_are_claimed_and_filled_together(ready: Rig):
    reads: list[int] = []
    read = ready.source.read

    def reading(buffer: int, index: int, target: memoryview) -> None:
        reads.append(len(target))
        read(buffer, index, target)

    ready.source.read = reading  # type: ignore[method-assign]
    ready.start()
    until(lambda: ready.weights.whole)
    assert max(reads) > CHUNK
    assert sum(reads) == ready.weights.size
    assert sorted(ready.source.restored) == [ready.weights.locate(chunk)[:2] for chunk in range(COUNT)]


def test_of_chunks_that_are_filled_together_the_damaged_one_alone_is_missing(ready: Rig):
    ready.source.damaged.add((0, 3))
    job = ready.start()
    with pytest.raises(StoredDataError):
        ready.loader.wait_beyond(job, 21)
    until(lambda: not ready.weights.table.claimed)
    assert ready.weights.states[3] == ABSENT
    assert not ready.machine.flexmem.holds(ready.weights.parts[0].arena, 3 * CHUNK)
    assert ready.weights.states[2] == ready.weights.states[4] == RESIDENT


def test_chunks_claimed_together_give_up_what_somebody_else_took_the_memory_of(ready: Rig):
    taken = ready.machine.flexmem.reserve(COUNT * CHUNK)
    together = ready.loader._filler.commit_together

    def outrun(weights, chunks):
        ready.loader._filler.commit_together = together  # type: ignore[method-assign]
        ready.machine.flexmem.try_commit(taken, 0, (COUNT - 1) * CHUNK)
        return together(weights, chunks)

    ready.loader._filler.commit_together = outrun  # type: ignore[method-assign]
    job = ready.start()
    assert ready.loader.wait_beyond(job, COUNT - 1) == COUNT
    ready.machine.budget.returned(ready.machine.flexmem.free(taken))


def test_an_eviction_while_chunks_are_filled_together_leaves_none_claimed(ready: Rig):
    ready.source.hold.clear()
    job = ready.start()
    until(lambda: ready.machine.flexmem.committed(ready.weights.parts[0].arena) > 0)
    assert ready.loader.evict(ready.weights, range(COUNT)) == 0
    assert job.stale
    ready.source.hold.set()
    until(lambda: not ready.weights.table.claimed)
    ready.weights.table.check()
    held = sum(ready.machine.flexmem.committed(part.arena) for part in ready.weights.parts)
    assert held == ready.weights.table.count(ChunkState.RESIDENT) * CHUNK


def test_the_table_is_sound_when_all_queues_were_used_at_once(rig: Rig):
    rig.source.delay = 0.0005
    other = rig.machine.model((30,), FakeSource(delay=0.0005))
    for count in (1, 5, COUNT, 3):
        job = rig.start()
        rig.loader.prefetch(other, range(30))
        rig.loader.wait_beyond(job, 0)
        rig.machine.budget.returned(rig.loader.evict(rig.weights, range(count)))
        rig.machine.budget.returned(rig.loader.evict(other, range(count)))
    until(lambda: not rig.loader.prefetching)
    until(lambda: not rig.weights.table.claimed + other.table.claimed)
    rig.weights.table.check()
    other.table.check()
    held = sum(rig.machine.flexmem.committed(part.arena) for w in (rig.weights, other) for part in w.parts)
    resident = sum(w.table.count(ChunkState.RESIDENT) for w in (rig.weights, other))
    assert held == resident * CHUNK
