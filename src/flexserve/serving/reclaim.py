"""Carrying out a recall: plan, give up, report what the OS really got."""

from __future__ import annotations

import time

from flexserve.policy import recall
from flexserve.policy.recall import Kind, Step
from flexserve.protocol.messages import Recall, Recalled
from flexserve.serving.eviction import Cache
from flexserve.serving.model_manager import Shelf
from flexserve.trusted.memory.flexmem import FlexMem
from flexserve.trusted.weights.residency import Residency
from flexserve.units import format_size


class Reclaimer:
    """Answers recalls, one at a time, from a thread of its own."""

    def __init__(self, shelf: Shelf, cache: Cache, residency: Residency, flexmem: FlexMem) -> None:
        self._shelf, self._cache = shelf, cache
        self._residency, self._flexmem = residency, flexmem

    def answer(self, message: Recall) -> Recalled:
        """Give memory back as asked and report it. Never waits on inference beyond one slice."""
        began = time.monotonic()
        deadline = began + message.deadline / 1000
        before = self._flexmem.resident()
        done: dict[Step, int] = {}  # bytes that the OS got by each
        self._residency.end_prefetch()  # memory is wanted elsewhere
        with self._shelf.recalling(message.deadline / 1000 / 4):
            if self._needs_kv(message.demand):
                self._shelf.seal_before(deadline)
            returned = self._flexmem.return_unused()
            after = before
            # One step at a time, since only the OS knows what a step brings: KV and scratch may
            # be committed without having pages, and the demand is for pages.
            while step := self._next_step(message, before - after, done):
                size, now = self._carry_out(step, deadline)
                returned += size
                done[step] = after - now
                after = now
            kept = recall.protected(self._shelf.holdings())
        return Recalled(
            serial=message.serial,
            returned=returned,
            os_before=before,
            os_after=after,
            elapsed=(time.monotonic() - began) * 1000,
            protected=kept,
            plan=[
                f"{step.kind.name.lower()} of {step.model}: {format_size(freed)}"
                for step, freed in done.items()
            ],
        )

    def _needs_kv(self, demand: int | None) -> bool:
        """Return whether meeting `demand` will take KV that nobody uses."""
        return any(step.kind is Kind.KV for step in recall.plan(self._shelf.holdings(), demand))

    def _next_step(self, message: Recall, freed: int, done: dict[Step, int]) -> Step | None:
        """Return what to give up next, None when the demand is met or every holding had its turn."""
        missing = None if message.demand is None else message.demand - freed
        tried = {(step.model, step.kind) for step in done}
        steps = recall.plan(self._shelf.holdings(), missing, victims=self._cache.victims)
        steps = [step for step in steps if not self._spared(step, message)]
        return next((step for step in steps if (step.model, step.kind) not in tried), None)

    def _spared(self, step: Step, message: Recall) -> bool:
        """Return whether `message` is not worth this step."""
        definite = message.demand is not None and not message.gentle
        pinned = step.kind is Kind.WEIGHTS and self._shelf.is_pinned(step.model)
        return (message.gentle and step.between_slices) or (pinned and not definite)

    def _carry_out(self, step: Step, deadline: float) -> tuple[int, int]:
        """Give up what `step` says; return the bytes that went, and what the OS counts then."""
        if not step.between_slices:
            return self._shelf.give_up(step.model, step.kind, step.size), self._flexmem.resident()
        with self._residency.gate.shut(max(0.0, deadline - time.monotonic())) as shut:
            size = self._shelf.give_up(step.model, step.kind, step.size) if shut else 0
            # Before the request goes on, and takes what it needs anew.
            return size, self._flexmem.resident()
