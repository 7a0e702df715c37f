"""All of `flexserve bench paper --platform trustzone`, round by round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flexserve.bench.paper.models import Models
from flexserve.bench.paper.requests import Subject
from flexserve.bench.report import keep
from flexserve.bench.trustzone import report
from flexserve.bench.trustzone.calls import Calls
from flexserve.bench.trustzone.memory import Memory
from flexserve.bench.trustzone.npu import Handovers
from flexserve.bench.trustzone.npu_use import NpuUse
from flexserve.bench.trustzone.plan import Plan
from flexserve.bench.trustzone.programs import Programs
from flexserve.bench.trustzone.requests import on_the_host

Say = Callable[[str], None]


def measure(plan: Plan, folder: Path, say: Say) -> dict[str, Any]:
    """Measure `plan` with models kept in `folder`; return the report, a JSON-able object.

    One machine runs at a time, but for the memory's two. In each round everything is measured once, so
    that whatever else the host does meets all of it. What is known after each round is in
    `folder`/report.json. Raises NormalWorldError when a machine cannot be had.
    """
    paper, models = plan.requests, Models(folder, say)
    subjects = [
        Subject(shape, *models.make(shape, paper.quant, paper.lengths, paper.threads))
        for shape in paper.shapes
    ]
    shape, lengths = plan.npu.shape, plan.npu.prompts
    client = Subject(shape, *models.make(shape, "q8_0", lengths, paper.threads))
    memory, calls = Memory(plan, say), Calls(plan, say)
    programs, requests = Programs(plan, models, say), on_the_host(plan, models, say)
    handovers, npu_use = Handovers(plan, say), NpuUse(plan, models, say)
    for number in range(plan.rounds):
        memory.round(number)
        calls.round(number)
        programs.round(subjects[0], number)
        requests.round(subjects, number)
        handovers.round(number)
        npu_use.round(client, number)
        parts = {
            "memory": memory.report(),
            "calls": calls.report(),
            "programs": programs.report(),
            "npu": {**handovers.report(), **npu_use.report()},
            **requests.report(),
        }
        found = report.assemble(plan, number + 1, parts)
        keep(found, folder / "report.json", say)
    return found
