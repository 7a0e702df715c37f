"""The guest's driver says in the ring what it wants back, and it is met once, whatever else it says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from flexserve.platforms.trustzone.ram import PAGE
from flexserve.protocol.memory import Recall
from flexserve.serving.demands import Demands
from flexserve.tee_client.ring_demands import ALL, LAYOUT, OFFSET, RingDemands
from flexserve.units import MIB

HEADER = Path(__file__).parents[2] / "driver" / "flexmem" / "uapi" / "ring.h"
RAM = 64 * MIB


class Guest:
    """A driver that writes demands, and who meets them: of `held` bytes all is given that is recalled."""

    def __init__(self) -> None:
        self.memory = bytearray(PAGE)
        self.held, self.opened = 8 * MIB, 1 * MIB  # which goes only when models close
        self.recalled: list[Recall] = []
        self.later: list[Callable[[], None]] = []
        demands = Demands(
            most=RAM,
            held=lambda: self.held,
            return_unused=lambda: 0,
            recall=self.give,
            later=self.later.append,
            close_idle=self.close_idle,
        )
        self.reader = RingDemands(memoryview(self.memory), demands)
        self.count = 0

    def give(self, message: Recall) -> None:
        self.recalled.append(message)
        assert message.demand is not None
        self.held -= min(self.held - self.opened, message.demand)

    def close_idle(self) -> None:
        self.opened = 0

    def want(self, pages: int, milliseconds: int = 100) -> None:
        self.count += 1
        LAYOUT.pack_into(self.memory, OFFSET, self.count % (1 << 32), milliseconds, pages)

    def look(self) -> list[Recall]:
        """Have the reader look, and what it found met; return all recalls so far."""
        self.reader.look()
        while self.later:
            self.later.pop(0)()
        return self.recalled


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_a_demand_is_met_once(guest: Guest) -> None:
    assert guest.look() == []
    guest.want(512, 250)
    assert [(it.demand, it.deadline) for it in guest.look()] == [(2 * MIB, 250)]
    assert len(guest.look()) == 1


def test_demands_that_were_not_seen_are_the_last_of_them(guest: Guest) -> None:
    guest.want(1)
    guest.want(512)
    assert [it.demand for it in guest.look()] == [2 * MIB]


def test_a_driver_that_leaves_gets_everything(guest: Guest) -> None:
    guest.want(ALL)
    guest.look()
    assert guest.held == 0


def test_an_absurd_demand_is_for_no_more_than_there_is(guest: Guest) -> None:
    guest.want(ALL - 1, (1 << 32) - 1)
    (asked,) = guest.look()
    assert asked.demand == RAM
    assert asked.deadline <= 10_000


def test_whatever_is_written_there_is_a_demand_or_none(guest: Guest) -> None:
    guest.memory[:] = b"\xff" * PAGE
    guest.look()
    assert guest.held == 0


def test_the_words_are_where_the_driver_has_them() -> None:
    text = HEADER.read_text()
    assert f"#define FLEXMEM_RING_DEMAND {OFFSET} " in text
    fields = re.findall(r"__u(32|64) (\w+);", text)
    assert fields == [("32", "demands"), ("32", "deadline_ms"), ("64", "pages")]
    assert LAYOUT.format == "<IIQ"
