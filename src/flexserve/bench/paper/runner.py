"""All of `flexserve bench paper` on this machine, round by round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flexserve.bench.paper import report
from flexserve.bench.paper.measured_system import MeasuredSystem
from flexserve.bench.paper.models import Models
from flexserve.bench.paper.pipeline import Pipeline
from flexserve.bench.paper.plan import Plan, System
from flexserve.bench.paper.requests import Requests, Subject
from flexserve.bench.paper.workflows import Workflows
from flexserve.bench.report import keep

Say = Callable[[str], None]


def measure(plan: Plan, folder: Path, say: Say) -> dict[str, Any]:
    """Measure `plan` with models kept in `folder`; return the report, a JSON-able object.

    Everything is measured once on every measured_system before anything is measured again, so that whatever
    else the machine does meets all of them. What is known after each round is in `folder`/report.json,
    for who has to stop early. Raises FlexServeError when a world cannot be had.
    """
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
    requests, workflows = Requests(plan, models, say), Workflows(plan, models, say)
    pipeline = Pipeline(plan, models)
    for number in range(plan.rounds):
        for subject in subjects:
            requests.round(subject, number)
        say(f"round {number + 1}: the pipeline's lower bound")
        pipeline.round(subjects[plan.pipeline_shape])
        workflows.round(subjects, number)
        found = report.assemble(plan, welcome, requests, workflows, pipeline)
        keep({**found, "rounds": number + 1}, folder / "report.json", say)
    return found
