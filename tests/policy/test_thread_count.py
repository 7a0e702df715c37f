"""How many threads compute beside other programs."""

from __future__ import annotations

import dataclasses

import pytest

from flexserve.policy.thread_count import ThreadCount

STEP = 0.005  # seconds that a slice of compute takes on cores of its own


@dataclasses.dataclass
class Machine:
    """Computes on `cores`, beside `busy` programs that never wait; each thread gets a fair share."""

    cores: int
    busy: int = 0
    now: float = 0.0
    trials: float = 0.0  # seconds of them

    def compute(self, threads: ThreadCount, seconds: float) -> list[int]:
        """Compute for so long; return the counts of threads outside trials."""
        counts: list[int] = []
        until = self.now + seconds
        while self.now < until:
            threads.begin(self.now)
            share = min(1.0, self.cores / (threads.count + self.busy))
            wall = STEP / share
            self.now += wall
            if threads.trial:
                self.trials += wall
            else:
                counts.append(threads.count)
            threads.computed(wall, threads.count * (1 - share) * wall, self.now)
        return counts


@pytest.mark.parametrize("cores", [1, 2, 16])
def test_alone_all_threads_compute_and_nothing_is_tried(cores: int):
    machine = Machine(cores)
    assert set(machine.compute(ThreadCount(cores), 20)) == {cores}
    assert machine.trials == 0


@pytest.mark.parametrize(("cores", "busy", "expected"), [(2, 1, 1), (2, 2, 1), (16, 1, 15), (16, 4, 12)])
def test_others_get_the_cores_that_they_use(cores: int, busy: int, expected: int):
    machine, threads = Machine(cores, busy), ThreadCount(cores)
    machine.compute(threads, 1)
    assert min(machine.compute(threads, 10)) == expected


def test_trying_costs_little_where_others_stay():
    machine, threads = Machine(2, busy=2), ThreadCount(2)
    machine.compute(threads, 10)
    machine.trials = 0
    machine.compute(threads, 60)
    assert 0 < machine.trials < 0.02 * 60


def test_all_threads_compute_again_when_the_others_are_gone():
    machine, threads = Machine(2, busy=1), ThreadCount(2)
    machine.compute(threads, 60)
    machine.busy = 0
    machine.compute(threads, 4.5)
    assert set(machine.compute(threads, 10)) == {2}


def test_what_takes_a_core_for_a_moment_changes_nothing():
    threads = ThreadCount(2)
    for step in range(1000):
        now = step * STEP
        threads.begin(now)
        threads.computed(STEP, 0.004 if step % 10 == 0 else 0.0, now + STEP)
        assert threads.count == 2


def test_a_single_disturbance_is_soon_forgotten():
    machine, threads = Machine(2), ThreadCount(2)
    machine.compute(threads, 1)
    machine.busy = 1
    machine.compute(threads, 0.1)
    machine.busy = 0
    machine.compute(threads, 0.3)
    assert set(machine.compute(threads, 1)) == {2}


def test_disturbances_that_come_back_make_pauses_longer():
    machine, threads = Machine(2), ThreadCount(2)
    for _ in range(10):
        machine.busy = 0
        while threads.count < 2 or threads.trial:
            machine.compute(threads, STEP)
        machine.busy = 1
        while threads.count == 2:
            machine.compute(threads, STEP)
    machine.busy, machine.trials = 0, 0
    assert set(machine.compute(threads, 3)) == {1}


def test_one_long_slice_decides_nothing_but_has_it_tried():
    threads = ThreadCount(2)
    threads.begin(0.0)
    threads.computed(0.4, 0.4, 0.4)
    assert (threads.count, threads.trial) == (2, True)
    threads.computed(0.02, 0.02, 0.42)
    assert threads.count == 1


def test_what_takes_a_core_for_tens_of_milliseconds_now_and_then_keeps_no_thread_idle():
    """A hypervisor does, that has another guest."""
    threads, now = ThreadCount(2), 0.0
    for step in range(2000):
        threads.begin(now)
        wall, lost = (STEP + 0.03, 0.03) if step % 40 == 0 else (STEP, 0.0)
        now += wall
        threads.computed(wall, lost, now)
        assert threads.count == 2


def pause(threads: ThreadCount, now: float) -> float:
    """Lose a core to others twice, at `now`; return for how long there are fewer threads."""
    for _ in range(2):
        threads.computed(0.1, 0.1, now)
    assert threads.count == 1
    step = 1 / 64
    ended = now
    while threads.count == 1:
        ended += step
        threads.begin(ended)
    assert (threads.count, threads.trial) == (2, True), "all are given again on trial"
    return ended - now


def test_pauses_double_up_to_four_seconds_and_a_long_quiet_time_makes_them_short_again():
    threads, now, pauses = ThreadCount(2), 0.0, []
    for _ in range(6):
        threads.trial = False
        pauses.append(pause(threads, now))
        now += pauses[-1]
    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 4.0]
    threads.trial = False
    assert pause(threads, now + 4.0) == 0.25


def test_as_many_threads_go_as_cores_were_lacking():
    threads = ThreadCount(8)
    for _ in range(2):
        threads.computed(0.5, 1.5, 0.0)
    assert threads.count == 5


def test_a_trial_too_short_for_the_clock_that_lost_much_leaves_one_thread():
    threads = ThreadCount(4)
    for _ in range(2):
        threads.begin(0.0)
        threads.computed(0.0, 1.0, 0.0)
    assert threads.count == 1
