"""What the kernel of a machine wants back is given within its time, and no more often than it asks."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from sharing import Clock

from flexserve.protocol.memory import Recall
from flexserve.serving import demands
from flexserve.serving.demands import Demand, Demands

MOST = 1000


class Memory:
    """`held` bytes, of which `unused` are nobody's and `stuck` are of a request that runs."""

    def __init__(self, held: int, unused: int = 0, stuck: int = 0) -> None:
        self.held, self.unused, self.stuck = held, unused, stuck
        self.opened = 0  # bytes that go when models close
        self.recalled: list[Recall] = []
        self.later: list[Callable[[], None]] = []
        self.demands = Demands(
            most=MOST,
            held=lambda: self.held + self.opened,
            return_unused=self.return_unused,
            recall=self.recall,
            later=self.later.append,
            close_idle=self.close_idle,
        )

    def return_unused(self) -> int:
        size, self.unused = self.unused, 0
        self.held -= size
        return size

    def recall(self, message: Recall) -> None:
        self.recalled.append(message)
        assert message.demand is not None
        self.held -= min(self.held - self.stuck, message.demand)

    def close_idle(self) -> None:
        self.opened = 0

    def work(self) -> None:
        """Do what waits."""
        while self.later:
            self.later.pop(0)()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr(demands, "time", SimpleNamespace(monotonic=clock.monotonic, sleep=sleep))
    return clock


def test_what_nobody_uses_goes_first_and_the_rest_is_recalled() -> None:
    memory = Memory(held=500, unused=100)
    memory.demands.press(300, 0.25)
    memory.work()
    assert [(it.demand, it.deadline) for it in memory.recalled] == [(200, 250)]
    assert memory.held == 200


def test_a_demand_that_unused_memory_meets_recalls_nothing() -> None:
    memory = Memory(held=500, unused=300)
    memory.demands.press(300, 0.25)
    memory.work()
    assert memory.recalled == []


def test_demands_before_the_first_was_met_are_one_as_large_and_as_urgent_as_the_worst() -> None:
    memory = Memory(held=500)
    for size, seconds in ((10, 5.0), (40, 9.0), (20, 0.5)):
        memory.demands.press(size, seconds)
    assert memory.demands.asked == Demand(40, 0.5)
    memory.work()
    assert [(it.demand, it.deadline) for it in memory.recalled] == [(40, 500)]


def test_a_demand_after_one_was_met_is_another() -> None:
    memory = Memory(held=500)
    for _ in range(2):
        memory.demands.press(10, 1.0)
        memory.work()
    assert len(memory.recalled) == 2
    assert memory.demands.asked is None


def test_nobody_is_asked_for_more_than_there_is_nor_for_longer_than_is_meant() -> None:
    memory = Memory(held=500)
    memory.demands.press(1 << 64, 1e9)
    memory.work()
    assert [(it.demand, it.deadline) for it in memory.recalled] == [(MOST, 10_000)]


def test_all_is_given_and_models_close_that_nobody_uses(clock: Clock) -> None:
    memory = Memory(held=500, unused=100)
    memory.opened = 50
    memory.demands.want_everything()
    memory.work()
    assert memory.held + memory.opened == 0


def test_what_running_requests_let_go_of_in_time_goes_too(clock: Clock) -> None:
    memory = Memory(held=500, stuck=200)
    give = memory.recall

    def recall(message: Recall) -> None:
        give(message)
        memory.stuck = 200 if clock.now < 1003 else 0

    memory.demands._recall = recall
    memory.demands.want_everything()
    memory.work()
    assert memory.held == 0


def test_a_request_that_holds_on_is_not_waited_for_beyond_ten_seconds(clock: Clock) -> None:
    memory = Memory(held=500, stuck=200)
    before = clock.now
    memory.demands.want_everything()
    memory.work()
    assert memory.held == 200
    assert 10 <= clock.now - before < 11
