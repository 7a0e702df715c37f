"""The log of memory decisions: one line for one thing, numbered, bounded."""

from __future__ import annotations

from flexserve.normal.audit_log import MAX_DECISIONS, AuditLog, Kind


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_grants_of_one_restore_are_one_line() -> None:
    clock = Clock()
    audit_log = AuditLog(clock=clock)
    for _ in range(5):
        audit_log.note(Kind.GRANT, 10, "enough memory is free")
        clock.now += 0.5
    (line,) = audit_log.lines()
    assert (line.number, line.size, line.count) == (1, 50, 5)


def test_what_differs_or_is_apart_stands_apart() -> None:
    clock = Clock()
    audit_log = AuditLog(clock=clock)
    audit_log.note(Kind.GRANT, 10, "a")
    audit_log.note(Kind.GRANT, 10, "b")
    clock.now += 1.1
    audit_log.note(Kind.GRANT, 10, "b")
    assert [line.number for line in audit_log.lines()] == [1, 2, 3]


def test_the_grants_of_two_models_are_two_lines() -> None:
    audit_log = AuditLog(clock=Clock())
    for model in ("a", "a", "b"):
        audit_log.note(Kind.GRANT, 10, "enough memory is free", model)
    assert [(line.model, line.size) for line in audit_log.lines()] == [("a", 20), ("b", 10)]


def test_every_recall_is_a_line_of_its_own() -> None:
    audit_log = AuditLog(clock=Clock())
    for _ in range(3):
        audit_log.note(Kind.RECALL, 10, "asked for")
    assert len(audit_log.lines()) == 3


def test_the_newest_line_is_settled_once_nothing_can_join_it() -> None:
    clock = Clock()
    audit_log = AuditLog(clock=clock)
    assert audit_log.settled() == 0
    audit_log.note(Kind.GRANT, 10, "a")
    assert audit_log.settled() == 0
    clock.now += 1.1
    assert audit_log.settled() == 1


def test_a_jump_of_the_wall_clock_changes_neither_order_nor_lines() -> None:
    clock, wall = Clock(), Clock()
    audit_log = AuditLog(clock=clock, wall=wall)
    wall.now = 1e9
    audit_log.note(Kind.GRANT, 10, "a")
    wall.now = 0
    audit_log.note(Kind.GRANT, 10, "a")
    clock.now += 2
    audit_log.note(Kind.GRANT, 10, "a")
    assert [(line.number, line.count) for line in audit_log.lines()] == [(1, 2), (2, 1)]


def test_the_log_is_bounded() -> None:
    audit_log = AuditLog(clock=Clock())
    for number in range(2 * MAX_DECISIONS):
        audit_log.note(Kind.GRANT, 1, str(number))
    assert len(audit_log.lines()) == MAX_DECISIONS
    assert audit_log.lines()[-1].number == 2 * MAX_DECISIONS
