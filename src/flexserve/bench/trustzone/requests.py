"""Requests and a workflow on the machine: FlexServe on Flex-Mem, the strawmen on contiguous memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from flexserve.bench.paper.measured_system import MeasuredSystem
from flexserve.bench.paper.models import Models
from flexserve.bench.paper.plan import System, Workflow
from flexserve.bench.paper.requests import Subject
from flexserve.bench.paper.samples import Cell, Cells, Request, largest_speedup, mean_speedup
from flexserve.bench.trustzone.measured_machine import MeasuredMachine, Say
from flexserve.bench.trustzone.plan import Allocator, Plan

SYSTEMS = {
    System.FLEXSERVE: Allocator.FLEXMEM,
    System.STRAWMAN: Allocator.CMA,
    System.STRAWMAN_OPT: Allocator.CMA,
}
STRAWMEN = (System.STRAWMAN, System.STRAWMAN_OPT)


class Requests:
    """Measures, and keeps what it measured in cells as the paper's do."""

    def __init__(self, plan: Plan, models: Models, say: Say) -> None:
        self._plan, self._models, self._say = plan, models, say
        self._paper = plan.requests
        self.ttft, self.workflows = Cells(), Cells()

    def round(self, subjects: Sequence[Subject], number: int) -> None:
        """Measure everything once: one measured_system after the other, another one first in each round."""
        turn = number % len(SYSTEMS)
        for system in [*list(SYSTEMS)[turn:], *list(SYSTEMS)[:turn]]:
            self._say(f"round {number + 1}: requests to {system.value}")
            bootargs = self._plan.kernels[0].bootargs
            with (
                MeasuredMachine.set(self._plan, SYSTEMS[system], self._say, bootargs=bootargs) as measured,
                MeasuredSystem(system, self._paper, self._models, measured.machine) as measured_system,
            ):
                for subject in subjects:
                    measured_system.open(subject.model)
                    self._ask_all(measured, measured_system, subject)
                measured_system.world.recall(None)
                for workflow in self._paper.workflows:
                    with measured.background(self._plan.background):
                        request = self._run(measured_system, workflow, subjects)
                    self.workflows.at(workflow=workflow.name).add(system, request)

    def _ask_all(self, measured: MeasuredMachine, measured_system: MeasuredSystem, subject: Subject) -> None:
        """Ask under fresh background load each time: what CMA moved away once stays away."""
        for length in self._paper.prompts:
            for kept in self._paper.kept if measured_system.system.keeps else (0.0,):
                measured_system.world.recall(None)  # what is kept of other models, too
                if kept:
                    measured_system.world.warm(subject.model)
                    measured_system.press(int(kept * measured_system.weights(subject.model)))
                with measured.background(self._plan.background):
                    finished = measured_system.ask(subject.model, subject.prompts[length], 1)
                request = Request.of(finished.timings, self._paper.threads)
                cells = [kept] if measured_system.system.keeps else self._paper.kept
                for each in cells:  # a strawman keeps nothing, whatever the others do
                    cell = self.ttft.at(model=subject.shape, prompt=length, kept=each)
                    cell.add(measured_system.system, request)

    def _run(
        self, measured_system: MeasuredSystem, workflow: Workflow, subjects: Sequence[Subject]
    ) -> Request:
        following = [*workflow.calls[1:], None]
        parts: list[dict[str, float]] = []
        began = time.monotonic()
        for place, coming in zip(workflow.calls, following, strict=True):
            hint = subjects[coming].model if workflow.hints and coming is not None else None
            prompt = subjects[place].prompts[self._paper.call_prompt]
            finished = measured_system.ask(subjects[place].model, prompt, self._paper.call_tokens, hint)
            request = Request.of(finished.timings, self._paper.threads)
            parts.append(request.parts | {"decode": finished.timings.decode / 1000})
        seconds = time.monotonic() - began
        return Request(seconds, {name: sum(call[name] for call in parts) for name in parts[0]})

    def report(self) -> dict[str, Any]:
        """Return the figures of requests and of workflows."""
        ttft, flows = self.ttft.all(), self.workflows.all()
        return {
            "ttft": {
                **{f"speedup_over_{each.value}_mean": mean_speedup(ttft, each) for each in STRAWMEN},
                "by_kept": {str(kept): self._means(kept) for kept in self._paper.kept},
                "cells": [cell.as_json() for cell in ttft],
            },
            "workflow": {
                **{f"speedup_over_{each.value}_max": largest_speedup(flows, each) for each in STRAWMEN},
                "cells": [cell.as_json() for cell in flows],
            },
        }

    def _means(self, kept: float) -> dict[str, float]:
        cells: list[Cell] = [cell for cell in self.ttft.all() if cell.key["kept"] == kept]
        return {f"speedup_over_{each.value}_mean": mean_speedup(cells, each) for each in STRAWMEN}
