"""All of `flexserve bench paper` on this machine, round by round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from flexserve.bench.paper import report
from flexserve.bench.paper.measured_system import MeasuredSystem
from flexserve.bench.paper.models import Models
from flexserve.bench.paper.pipeline import Pipeline
from flexserve.bench.paper.plan import Plan, System
from flexserve.bench.paper.requests import Requests, Subject
from flexserve.bench.paper.samples import Samples
from flexserve.bench.paper.workflows import Workflows
from flexserve.bench.report import keep

Say = Callable[[str], None]


def measure(plan: Plan, folder: Path, say: Say, *, resume: bool = False) -> dict[str, Any]:
    """Measure `plan` with models kept in `folder`; return the report, a JSON-able object.

    Everything is measured once on every measured_system before anything is measured again, so that whatever
    else the machine does meets all of them. What is known after each round is in `folder`/report.json, for
    who has to stop early. With `resume` the rounds of a run that was stopped, in `folder`/samples.json, are
    not measured again. Raises CallerError where they are of another plan, and FlexServeError when a world
    cannot be had.
    """
    samples = Samples.of(plan, folder / "samples.json", resume=resume)
    models = Models(folder, say)
    subjects = [
        Subject(shape, *models.make(shape, plan.quant, plan.lengths, plan.threads)) for shape in plan.shapes
    ]
    say("making images")
    with MeasuredSystem(System.FLEXSERVE, plan, models) as measured_system:
        for subject in subjects:
            measured_system.open(subject.model)
            measured_system.press(0)
        welcome = measured_system.world.welcome
    requests, workflows = Requests(plan, models, samples, say), Workflows(plan, models, samples, say)
    pipeline = Pipeline(plan, models, samples)
    for number in range(samples.rounds, plan.rounds):
        for subject in subjects:
            requests.round(subject, number)
        say(f"round {number + 1}: the pipeline's lower bound")
        pipeline.round(subjects[plan.pipeline_shape])
        workflows.round(subjects, number)
        samples.rounds += 1
        keep(msgspec.to_builtins(samples), folder / "samples.json")
        keep(report.assemble(samples, welcome), folder / "report.json", say)
    return report.assemble(samples, welcome)
