"""`flexserve bench paper`: measure, or simulate, and print."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flexserve.bench import drawing
from flexserve.bench.paper import plan
from flexserve.bench.paper.report import PAPER
from flexserve.errors import CallerError, NormalWorldError
from flexserve.protocol.launch import Memory


@dataclasses.dataclass(frozen=True, slots=True)
class PaperOptions:
    """What to measure and how to print it."""

    folder: Path  # of models that are kept from run to run
    platform: str = "linux"  # or "sim", or "trustzone"
    secure_world: str = "inside"  # of "trustzone"; or "host"
    quick: bool = False
    threads: int = 0  # 0: one for each core
    memory: Memory = "secret"
    as_json: bool = False
    plot: Path | None = None
    resume: bool = False  # go on where a run was stopped


def run(options: PaperOptions) -> int:
    """Print the report to standard output and progress to standard error; return 0."""
    inside = options.platform == "trustzone" and options.secure_world == "inside"
    if options.plot is not None:
        if options.platform != "linux" and not inside:
            raise CallerError("There are no plots of this.", hint="Leave --plot away.")
        drawing.pyplot()  # before an hour is spent
    if options.platform != "linux" and options.resume:
        raise CallerError("Only a run with --platform linux can be resumed.", hint="Leave --resume away.")
    if options.platform == "sim":
        from flexserve.bench.paper import simulated

        report = simulated.run()
        text = "" if options.as_json else simulated.table(report)
    elif inside:
        from flexserve.bench.trustzone import inside_plots, inside_report

        report = _measure_inside(options)
        text = "" if options.as_json else inside_report.table(report)
        if options.plot is not None:
            _drew(inside_plots.plot(report, options.plot))
    elif options.platform == "trustzone":
        from flexserve.bench.trustzone import table as emulated

        report = _emulate(options)
        text = "" if options.as_json else emulated.table(report)
    else:
        from flexserve.bench.paper import plots, table

        report = _measure(options)
        text = "" if options.as_json else table.table(report)
        if options.plot is not None:
            _drew(plots.plot(report, options.plot))
    sys.stdout.write((json.dumps(report) if options.as_json else text).rstrip("\n") + "\n")
    return 0


def _measure_inside(options: PaperOptions) -> dict[str, Any]:
    from flexserve.bench.trustzone import inside, inside_plan

    chosen = inside_plan.quick() if options.quick else inside_plan.full()
    return inside.measure(chosen, options.folder / "trustzone", _say)


def _emulate(options: PaperOptions) -> dict[str, Any]:
    from flexserve.bench.trustzone import plan as machine
    from flexserve.bench.trustzone import runner

    chosen = machine.quick if options.quick else machine.full
    return runner.measure(chosen(_threads(options)), options.folder / "trustzone", _say)


def _measure(options: PaperOptions) -> dict[str, Any]:
    from flexserve.bench.paper import runner

    chosen = plan.quick if options.quick else plan.full
    wanted = chosen(_threads(options), options.memory)
    report = runner.measure(wanted, options.folder, _say, resume=options.resume)
    report["normal_world"] = _application(quick=options.quick)
    return report


def _application(*, quick: bool) -> dict[str, Any]:
    """Measure what an application of the normal world keeps; say why not where that cannot be."""
    from flexserve.bench import application

    try:
        found = application.measure(_say, quick=quick)
    except NormalWorldError as error:
        _say(f"the normal world's application was not measured: {error.message}")
        found = {"kept_fraction": None, "reason": error.message}
    return {**found, "paper": PAPER["normal_world"]}


def _drew(files: Sequence[Path]) -> None:
    for file in files:
        _say(f"drew {file}")


def _threads(options: PaperOptions) -> int:
    return options.threads or len(os.sched_getaffinity(0))


def _say(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr, flush=True)  # noqa: T201
