"""What is done for the memory of a chunk when grants are short, decision by decision."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from fake_engine import CHUNK, Machine

from flexserve.errors import GrantRefusedError
from flexserve.trusted.weights.job import RestoreJob, RestoreStats
from flexserve.trusted.weights.plan import Needs, RestorePlan
from flexserve.trusted.weights.states import ChunkEvent
from flexserve.trusted.weights.streaming import Do, StreamingAllocator

COUNT = 22  # chunks of a machine's model


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.close()


def job_of(machine: Machine, *resident: int, at: int = 0) -> RestoreJob:
    """Return a job of a graph whose node i reads chunk i, and that compute waits for at node `at`."""
    weights = machine.weights
    for event in (ChunkEvent.CLAIM, ChunkEvent.LOADED):
        weights.table.apply(event, resident)
    for chunk in resident:
        part, index, _ = weights.locate(chunk)
        machine.flexmem.commit(weights.parts[part].arena, index * CHUNK, CHUNK)
    chunks = np.arange(COUNT, dtype=np.int32)
    plan = RestorePlan(Needs(COUNT, chunks, chunks), weights.states, 0)
    job = RestoreJob(weights, plan, RestoreStats(), at)
    job.advance()
    job.waiting, job.goal = True, max(job.done + 5, at + 1)
    return job


def allocator(
    machine: Machine, job: RestoreJob, position: int, *, in_turns: bool = False
) -> StreamingAllocator:
    return StreamingAllocator(machine.flexmem, job, position, in_turns=in_turns)


def test_what_compute_has_passed_makes_room_and_others_hear_once_that_memory_is_short(machine: Machine):
    job = job_of(machine, 0, 1, 2, at=2)
    first = allocator(machine, job, 3).step(0)
    assert (first.do, first.victim, first.wake) == (Do.REUSE, 1, True)
    assert job.short
    assert not allocator(machine, job, 4).step(0).wake


def test_with_nothing_passed_the_os_is_asked_and_pressed_only_for_the_chunk_that_compute_needs(
    machine: Machine,
):
    job = job_of(machine, 0, 1)
    for position, minimum in ((2, CHUNK), (3, 0)):
        step = allocator(machine, job, position).step(0)
        assert (step.do, step.minimum) == (Do.ASK, minimum)


def test_while_compute_runs_loaders_wait_for_it_to_pass_something(machine: Machine):
    job = job_of(machine, 0)
    job.waiting = False
    search = allocator(machine, job, 1)
    assert search.step(0).do is Do.WAIT
    assert search.step(0).do is Do.RETRY


def test_in_turns_nothing_is_taken_while_compute_runs(machine: Machine):
    job = job_of(machine, 0, 1, at=1)
    job.waiting = False
    assert allocator(machine, job, 2, in_turns=True).step(0).do is Do.WAIT
    assert allocator(machine, job, 2, in_turns=False).step(0).do is Do.REUSE
    job.waiting = True
    assert allocator(machine, job, 2, in_turns=True).step(0).do is Do.REUSE


def refused(machine: Machine, job: RestoreJob, position: int) -> StreamingAllocator:
    """Return an allocator whose request the OS has just refused, at time 0."""
    search = allocator(machine, job, position)
    assert search.step(0).do is Do.ASK
    search.refused(0)
    return search


def test_the_chunk_that_compute_needs_takes_the_memory_of_what_came_too_early(machine: Machine):
    job = job_of(machine, 5, 9)
    step = refused(machine, job, 0).step(0)
    assert (step.do, step.victim) == (Do.REUSE, 9)


def test_compute_waits_for_no_more_than_it_needs_once_the_os_refused(machine: Machine):
    job = job_of(machine, 0, 1)
    job.goal = 7
    step = refused(machine, job, 3).step(0)
    assert (step.do, step.wake) == (Do.WAIT, True)
    assert job.goal == 1


def test_a_later_chunk_is_left_so_that_the_first_finds_a_loader(machine: Machine):
    job = job_of(machine)
    search = refused(machine, job, 3)
    assert search.step(0).do is Do.WAIT
    assert search.step(0).do is Do.LEAVE


def test_a_request_is_refused_when_nothing_turned_up_for_a_while(machine: Machine):
    job = job_of(machine)
    search = refused(machine, job, 0)
    assert search.step(0.1).do is Do.WAIT
    assert search.step(0.2).do is Do.WAIT
    with pytest.raises(GrantRefusedError) as refusal:
        search.step(60)
    assert refusal.value.missing == COUNT * CHUNK


def test_memory_that_turns_up_is_tried_and_patience_begins_anew(machine: Machine):
    job = job_of(machine)
    search = refused(machine, job, 0)
    assert search.step(0.1).do is Do.WAIT
    machine.flexmem.grant(CHUNK)
    assert search.step(60).do is Do.RETRY
    assert search.step(60).do is Do.ASK
