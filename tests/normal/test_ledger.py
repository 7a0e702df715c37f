"""The log of memory decisions: one line for one thing, numbered, bounded."""

from __future__ import annotations

from flexserve.normal.ledger import MAX_DECISIONS, Kind, Ledger


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_grants_of_one_restore_are_one_line() -> None:
    clock = Clock()
    ledger = Ledger(clock=clock)
    for _ in range(5):
        ledger.note(Kind.GRANT, 10, "enough memory is free")
        clock.now += 0.5
    (line,) = ledger.lines()
    assert (line.number, line.size, line.count) == (1, 50, 5)


def test_what_differs_or_is_apart_stands_apart() -> None:
    clock = Clock()
    ledger = Ledger(clock=clock)
    ledger.note(Kind.GRANT, 10, "a")
    ledger.note(Kind.GRANT, 10, "b")
    clock.now += 1.1
    ledger.note(Kind.GRANT, 10, "b")
    assert [line.number for line in ledger.lines()] == [1, 2, 3]


def test_every_recall_is_a_line_of_its_own() -> None:
    ledger = Ledger(clock=Clock())
    for _ in range(3):
        ledger.note(Kind.RECALL, 10, "asked for")
    assert len(ledger.lines()) == 3


def test_the_newest_line_is_settled_once_nothing_can_join_it() -> None:
    clock = Clock()
    ledger = Ledger(clock=clock)
    assert ledger.settled() == 0
    ledger.note(Kind.GRANT, 10, "a")
    assert ledger.settled() == 0
    clock.now += 1.1
    assert ledger.settled() == 1


def test_a_jump_of_the_wall_clock_changes_neither_order_nor_lines() -> None:
    clock, wall = Clock(), Clock()
    ledger = Ledger(clock=clock, wall=wall)
    wall.now = 1e9
    ledger.note(Kind.GRANT, 10, "a")
    wall.now = 0
    ledger.note(Kind.GRANT, 10, "a")
    clock.now += 2
    ledger.note(Kind.GRANT, 10, "a")
    assert [(line.number, line.count) for line in ledger.lines()] == [(1, 2), (2, 1)]


def test_the_log_is_bounded() -> None:
    ledger = Ledger(clock=Clock())
    for number in range(2 * MAX_DECISIONS):
        ledger.note(Kind.GRANT, 1, str(number))
    assert len(ledger.lines()) == MAX_DECISIONS
    assert ledger.lines()[-1].number == 2 * MAX_DECISIONS
