"""Single requests: time to first token and decode speed of every measured_system, one beside the other."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

from flexserve.bench.paper.measured_system import MeasuredSystem, fresh_request
from flexserve.bench.paper.models import Models
from flexserve.bench.paper.plan import Plan, System
from flexserve.bench.paper.samples import Cell, Request, Samples

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """A model under measurement and its prompts by length in tokens."""

    shape: str
    model: str
    prompts: dict[int, str]


class Requests:
    """Measures, and adds to `samples`: `requests`, `decode` and `restarted`."""

    def __init__(self, plan: Plan, models: Models, samples: Samples, say: Say) -> None:
        self._plan, self._models, self._samples, self._say = plan, models, samples, say

    def round(self, subject: Subject, number: int) -> None:
        """Measure everything of one model once, with processes of their own.

        What a measured_system keeps or not must be what the cell says, so it is set before each request;
        a strawman keeps nothing under any pressure, so that one request of it stands in all cells of
        a prompt.
        """
        self._say(f"round {number + 1}: {subject.shape}")
        with contextlib.ExitStack() as stack:
            measured_systems = {
                system: stack.enter_context(MeasuredSystem(system, self._plan, self._models))
                for system in System
            }
            for measured_system in measured_systems.values():
                measured_system.open(subject.model)
            # Another one begins in each round, so that none always finds what the same other one left.
            order = list(System)[number % len(System) :] + list(System)[: number % len(System)]
            for length in self._plan.prompts:
                for system in order:
                    self._measure(measured_systems[system], subject, length)
            for system in order:
                self._measure_decode(measured_systems[system], subject)
        self._measure_restart(subject)

    def _measure(self, measured_system: MeasuredSystem, subject: Subject, length: int) -> None:
        if not measured_system.system.keeps:
            request = self._ask(measured_system, subject, length)
            for kept in self._plan.kept:
                self._cell(subject, length, kept).add(measured_system.system, request)
            return
        weights = measured_system.weights(subject.model)
        for kept in self._plan.kept:
            if kept == 1.0:
                measured_system.world.warm(subject.model)
            else:
                measured_system.press(int(kept * weights))
            request = self._ask(measured_system, subject, length)
            self._cell(subject, length, kept).add(measured_system.system, request)

    def _cell(self, subject: Subject, length: int, kept: float) -> Cell:
        return self._samples.requests.at(model=subject.shape, prompt=length, kept=kept)

    def _ask(self, measured_system: MeasuredSystem, subject: Subject, length: int) -> Request:
        finished = measured_system.ask(subject.model, subject.prompts[length], 1)
        return Request.of(finished.timings, self._plan.threads)

    def _measure_decode(self, measured_system: MeasuredSystem, subject: Subject) -> None:
        prompt = subject.prompts[self._plan.decode_prompt]
        finished = measured_system.ask(subject.model, prompt, self._plan.decode_tokens)
        steps = finished.usage.completion_tokens - 1
        if steps > 0:
            speeds = self._samples.decode.setdefault(subject.shape, {})
            speeds.setdefault(measured_system.system, []).append(steps / finished.timings.decode * 1000)

    def _measure_restart(self, subject: Subject) -> None:
        length = self._plan.decode_prompt
        seconds = fresh_request(self._plan, self._models, subject.model, subject.prompts[length])
        self._samples.restarted.setdefault(subject.shape, []).append(seconds)
