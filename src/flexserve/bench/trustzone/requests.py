"""Requests and workflows on the machine: FlexServe on Flex-Mem, the strawmen on contiguous memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from flexserve.bench.paper.measured_system import MeasuredSystem
from flexserve.bench.paper.models import Models
from flexserve.bench.paper.plan import Plan as RequestPlan
from flexserve.bench.paper.plan import System, Workflow
from flexserve.bench.paper.requests import Subject
from flexserve.bench.paper.samples import Cell, Cells, Request, largest_speedup, mean_speedup
from flexserve.bench.trustzone.measured_machine import MeasuredMachine, Say
from flexserve.bench.trustzone.plan import Allocator, Plan
from flexserve.protocol.answers import Timings

STRAWMEN = (System.STRAWMAN, System.STRAWMAN_OPT)

Standing = AbstractContextManager[tuple[MeasuredMachine, MeasuredSystem]]


class Requests:
    """Measures, and keeps what it measured in cells as the paper's do."""

    systems: Sequence[System] = (System.FLEXSERVE, *STRAWMEN)

    def __init__(
        self, plan: RequestPlan, background: int, stand: Callable[[System], Standing], say: Say
    ) -> None:
        """`background`: percent of RAM. `stand`: has a system run on a machine of its own."""
        self._plan, self._background, self._stand, self._say = plan, background, stand, say
        self.ttft, self.workflows = Cells(), Cells()

    def round(self, subjects: Sequence[Subject], number: int) -> None:
        """Measure everything once: one system after the other, another one first in each round."""
        turn = number % len(self.systems)
        for system in [*self.systems[turn:], *self.systems[:turn]]:
            self._say(f"round {number + 1}: requests to {system.value}")
            with self._stand(system) as (measured, measured_system):
                for subject in subjects:
                    measured_system.open(subject.model)
                for subject in subjects:
                    self._ask_all(measured, measured_system, subject)
                measured_system.world.recall(None)
                for workflow in self._plan.workflows:
                    with measured.background(self._background):
                        request = self._run(measured, measured_system, workflow, subjects)
                    self.workflows.at(workflow=workflow.name).add(system, request)

    def _ask_all(self, measured: MeasuredMachine, measured_system: MeasuredSystem, subject: Subject) -> None:
        """Ask under fresh background load each time: what CMA moved away once stays away."""
        for length in self._plan.prompts:
            for kept in self._plan.kept if measured_system.system.keeps else (0.0,):
                measured_system.world.recall(None)  # what is kept of other models, too
                with measured.background(self._background):
                    if kept:
                        measured_system.world.warm(subject.model)
                        measured_system.press(int(kept * measured_system.weights(subject.model)))
                    request = self._ask(measured, measured_system, subject, length)
                cells = [kept] if measured_system.system.keeps else self._plan.kept
                for each in cells:  # a strawman keeps nothing, whatever the others do
                    cell = self.ttft.at(model=subject.shape, prompt=length, kept=each)
                    cell.add(measured_system.system, request)

    def _ask(
        self, measured: MeasuredMachine, measured_system: MeasuredSystem, subject: Subject, length: int
    ) -> Request:
        """Ask for one token."""
        before = measured.allocating()
        finished = measured_system.ask(subject.model, subject.prompts[length], 1)
        return self._request(measured_system.system, finished.timings, measured.allocating() - before)

    def _request(self, system: System, timings: Timings, allocating: float) -> Request:
        """Return what a request took; `allocating`: seconds that the driver took for its memory."""
        del system, allocating  # the secure world of the host counts it by itself
        return Request.of(timings, self._plan.threads)

    def _run(
        self,
        measured: MeasuredMachine,
        measured_system: MeasuredSystem,
        workflow: Workflow,
        subjects: Sequence[Subject],
    ) -> Request:
        following = [*workflow.calls[1:], None]
        length = workflow.prompt or self._plan.call_prompt
        tokens = workflow.tokens or self._plan.call_tokens
        parts: list[dict[str, float]] = []
        began = time.monotonic()
        for place, coming in zip(workflow.calls, following, strict=True):
            before = measured.allocating()
            hint = subjects[coming].model if workflow.hints and coming is not None else None
            prompt = subjects[place].prompts[length]
            finished = measured_system.ask(subjects[place].model, prompt, tokens, hint)
            allocating = measured.allocating() - before
            request = self._request(measured_system.system, finished.timings, allocating)
            parts.append(request.parts | {"decode": finished.timings.decode / 1000})
        seconds = time.monotonic() - began
        return Request(seconds, {name: sum(call[name] for call in parts) for name in parts[0]})

    def report(self) -> dict[str, Any]:
        """Return the figures of requests and of workflows."""
        ttft, flows = self.ttft.all(), self.workflows.all()
        return {
            "ttft": {
                **self._means(ttft),
                "by_kept": {
                    str(kept): self._means([cell for cell in ttft if cell.key["kept"] == kept])
                    for kept in self._plan.kept
                },
                "cells": [cell.as_json() for cell in ttft],
            },
            "workflow": {
                **{f"speedup_over_{each.value}_max": largest_speedup(flows, each) for each in STRAWMEN},
                "cells": [cell.as_json() for cell in flows],
            },
        }

    def _means(self, cells: Sequence[Cell]) -> dict[str, float]:
        return {f"speedup_over_{each.value}_mean": mean_speedup(cells, each) for each in STRAWMEN}


def on_the_host(plan: Plan, models: Models, say: Say) -> Requests:
    """Return what measures secure worlds that are processes of the host."""

    @contextlib.contextmanager
    def stand(system: System) -> Iterator[tuple[MeasuredMachine, MeasuredSystem]]:
        allocator = Allocator.CMA if system in STRAWMEN else Allocator.FLEXMEM
        with (
            MeasuredMachine.set(plan, allocator, say, bootargs=plan.kernels[0].bootargs) as measured,
            MeasuredSystem(system, plan.requests, models, measured.machine) as measured_system,
        ):
            yield measured, measured_system

    return Requests(plan.requests, plan.background, stand, say)
