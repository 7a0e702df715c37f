"""Carrying out a recall: plan, give up, report what the OS really got."""

from __future__ import annotations

import time

from flexserve.core import recall
from flexserve.core.recall import Step
from flexserve.secure.flexmem import FlexMem
from flexserve.secure.residency import Residency
from flexserve.secure.shelf import Shelf
from flexserve.units import format_size
from flexserve.world.messages import Recall, Recalled


class Reclaimer:
    """Answers recalls, one at a time, from a thread of its own."""

    def __init__(self, shelf: Shelf, residency: Residency, flexmem: FlexMem) -> None:
        self._shelf, self._residency, self._flexmem = shelf, residency, flexmem

    def answer(self, message: Recall) -> Recalled:
        """Give memory back as asked and report it. Never waits on inference beyond one slice."""
        began = time.monotonic()
        deadline = began + message.deadline / 1000
        before = self._flexmem.resident()
        with self._shelf.lock:
            returned = self._flexmem.return_unused()
            missing = None if message.demand is None else message.demand - returned
            holdings = self._shelf.holdings()
            done: list[Step] = []
            for step in recall.plan(holdings, missing):
                size = self._carry_out(step, deadline)
                returned += size
                if size:
                    done.append(step)
        return Recalled(
            serial=message.serial,
            returned=returned,
            os_before=before,
            os_after=self._flexmem.resident(),
            elapsed=(time.monotonic() - began) * 1000,
            protected=recall.protected(self._shelf.holdings()),
            plan=[f"{step.kind.name.lower()} of {step.model}: {format_size(step.size)}" for step in done],
        )

    def _carry_out(self, step: Step, deadline: float) -> int:
        if not step.between_slices:
            return self._shelf.give_up(step.model, step.kind, step.size)
        with self._residency.gate.shut(max(0.0, deadline - time.monotonic())) as shut:
            return self._shelf.give_up(step.model, step.kind, step.size) if shut else 0
