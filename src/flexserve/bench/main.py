"""`flexserve bench`: measure and print."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flexserve.bench import drawing, report
from flexserve.bench.measure import Bench, Setting
from flexserve.protocol.launch import Memory


@dataclasses.dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to measure and how to print it."""

    model: Path
    runs: int = 5
    prompts: tuple[int, ...] = (32, 128)
    threads: int = 0  # 0: one for each core
    memory: Memory = "secret"
    output: str = "md"
    plot: Path | None = None


def run(options: BenchOptions) -> int:
    """Measure, print the report to standard output and progress to standard error; return 0."""
    if options.plot is not None:
        drawing.pyplot()  # before minutes are spent
    threads = options.threads or len(os.sched_getaffinity(0))
    setting = Setting(options.model, options.runs, options.prompts, threads, options.memory)
    result = Bench(setting, lambda what: print(f"bench: {what}", file=sys.stderr, flush=True)).run()  # noqa: T201
    if options.plot is not None:
        report.plot(result, options.plot)
    forms: dict[str, Callable[[dict[str, Any]], str]] = {
        "json": json.dumps,
        "csv": report.comma_separated,
        "md": report.markdown,
    }
    sys.stdout.write(forms[options.output](result).rstrip("\n") + "\n")
    return 0
