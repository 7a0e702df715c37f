"""The pipeline held against its lower bound, at every fraction of the weights that was recalled."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

from flexserve.bench.measure import cpu_seconds
from flexserve.bench.paper.contestants import Contestant
from flexserve.bench.paper.models import Models
from flexserve.bench.paper.plan import Plan, System
from flexserve.bench.paper.requests import Subject


class Pipeline:
    """Measures FlexServe alone: `samples` has (time to first token, bound) by (prompt, percent)."""

    def __init__(self, plan: Plan, models: Models) -> None:
        self._plan, self._models = plan, models
        self.samples: dict[tuple[int, int], list[tuple[float, float]]] = {}

    def round(self, subject: Subject) -> None:
        """Measure every prompt at every fraction, `pipeline_times` times.

        The bound is the largest of: restoring what is missing alone, computing alone, and the CPU
        seconds of both over the cores. Each is measured next to what it bounds.
        """
        with Contestant(System.FLEXSERVE, self._plan, self._models) as contestant:
            contestant.open(subject.model)
            weights = contestant.weights(subject.model)
            for length in self._plan.pipeline_prompts:
                prompt = subject.prompts[length]

                def ask(text: str = prompt) -> float:
                    return contestant.ask(subject.model, text, 1).timings.ttft / 1000

                ask()
                for percent in self._plan.recalled * self._plan.pipeline_times:
                    compute, compute_cpu = _timed(contestant, ask)
                    kept = weights * (100 - percent) // 100
                    contestant.press(kept)
                    restore, restore_cpu = _timed(contestant, lambda: _warm(contestant, subject.model))
                    contestant.press(kept)
                    cores = len(os.sched_getaffinity(0))
                    bound = max(restore, compute, (restore_cpu + compute_cpu) / cores)
                    self.samples.setdefault((length, percent), []).append((ask(), bound))

    def cells(self, shape: str) -> list[dict[str, object]]:
        """Return one cell for each prompt and fraction; ratios are medians of ratios within a round."""
        return [
            {
                "model": shape,
                "prompt": length,
                "recalled": percent,
                "seconds": statistics.median(ttft for ttft, _ in found),
                "bound": statistics.median(bound for _, bound in found),
                "over_bound": statistics.median(ttft / bound for ttft, bound in found),
            }
            for (length, percent), found in self.samples.items()
        ]


def _timed(contestant: Contestant, work: Callable[[], float]) -> tuple[float, float]:
    """Do `work`; return (the seconds that it says it took, CPU seconds of the world's process)."""
    before = cpu_seconds(contestant.world.pid)
    seconds = work()
    return seconds, cpu_seconds(contestant.world.pid) - before


def _warm(contestant: Contestant, model: str) -> float:
    began = time.monotonic()
    contestant.world.warm(model)
    return time.monotonic() - began
