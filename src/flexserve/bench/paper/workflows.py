"""Agent workflows: models called one after the other, from the first call to the last answer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

from flexserve.bench.paper.measured_system import MeasuredSystem
from flexserve.bench.paper.models import Models
from flexserve.bench.paper.plan import Plan, System, Workflow
from flexserve.bench.paper.requests import Subject
from flexserve.bench.paper.samples import Request, Samples

Say = Callable[[str], None]


class Workflows:
    """Measures workflows; a cell's "request" is a whole workflow, its parts the sums over its calls."""

    def __init__(self, plan: Plan, models: Models, samples: Samples, say: Say) -> None:
        self._plan, self._models, self._samples, self._say = plan, models, samples, say

    def round(self, subjects: Sequence[Subject], number: int) -> None:
        """Run every workflow once on every measured_system, with processes of their own."""
        for workflow in self._plan.workflows:
            self._say(f"round {number + 1}: {workflow.name}")
            used = [subjects[place] for place in dict.fromkeys(workflow.calls)]
            with contextlib.ExitStack() as stack:
                measured_systems = [
                    stack.enter_context(MeasuredSystem(system, self._plan, self._models)) for system in System
                ]
                for measured_system in measured_systems:
                    for subject in used:
                        measured_system.open(subject.model)
                turn = number % len(measured_systems)
                for measured_system in measured_systems[turn:] + measured_systems[:turn]:
                    request = self._run(measured_system, workflow, subjects, used)
                    cell = self._samples.workflows.at(workflow=workflow.name)
                    cell.add(measured_system.system, request)

    def _run(
        self,
        measured_system: MeasuredSystem,
        workflow: Workflow,
        subjects: Sequence[Subject],
        used: Sequence[Subject],
    ) -> Request:
        """Run one workflow; giving back what is beyond the limit between calls is part of its time."""
        limit = None
        sizes = [measured_system.weights(subject.model) for subject in used]
        if measured_system.system.keeps and workflow.kept is not None:
            limit = int(workflow.kept * sum(sizes))
            measured_system.press(limit)
        cap = None
        if workflow.cap is not None:
            cap = max(int(workflow.cap * sum(sizes)), max(sizes) + self._plan.beside)
            measured_system.cap(cap)
        following = [*workflow.calls[1:], None]
        length = workflow.prompt or self._plan.call_prompt
        tokens = workflow.tokens or self._plan.call_tokens
        parts: list[dict[str, float]] = []
        began = time.monotonic()
        for place, coming in zip(workflow.calls, following, strict=True):
            hint = subjects[coming].model if workflow.hints and coming is not None else None
            subject = subjects[place]
            finished = measured_system.ask(subject.model, subject.prompts[length], tokens, hint)
            request = Request.of(finished.timings, self._plan.threads)
            parts.append(request.parts | {"decode": finished.timings.decode / 1000})
            if limit is not None:
                measured_system.press(limit)
            if cap is not None:
                measured_system.cap(int((1 - workflow.pressed) * cap))
                measured_system.cap(cap)
        seconds = time.monotonic() - began
        return Request(seconds, {name: sum(call[name] for call in parts) for name in parts[0]})
