"""The pipeline held against its lower bound, at every fraction of the weights that was recalled."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from flexserve.bench.measure import cpu_seconds
from flexserve.bench.paper.measured_system import MeasuredSystem
from flexserve.bench.paper.models import Models
from flexserve.bench.paper.plan import Plan, System
from flexserve.bench.paper.requests import Subject
from flexserve.bench.paper.samples import Restored, Samples


class Pipeline:
    """Measures FlexServe alone, and adds to `samples.pipeline`."""

    def __init__(self, plan: Plan, models: Models, samples: Samples) -> None:
        self._plan, self._models, self._samples = plan, models, samples

    def round(self, subject: Subject) -> None:
        """Measure every prompt at every fraction, `pipeline_times` times.

        The bound is the largest of: restoring what is missing alone, computing alone, and the CPU
        seconds of both over the cores. Each is measured next to what it bounds.
        """
        with MeasuredSystem(System.FLEXSERVE, self._plan, self._models) as measured_system:
            measured_system.open(subject.model)
            weights = measured_system.weights(subject.model)
            for length in self._plan.pipeline_prompts:
                prompt = subject.prompts[length]

                def ask(text: str = prompt) -> float:
                    return measured_system.ask(subject.model, text, 1).timings.ttft / 1000

                ask()
                for percent in self._plan.recalled * self._plan.pipeline_times:
                    compute, compute_cpu = _timed(measured_system, ask)
                    kept = weights * (100 - percent) // 100
                    measured_system.press(kept)
                    restore, restore_cpu = _timed(
                        measured_system, lambda: _warm(measured_system, subject.model)
                    )
                    measured_system.press(kept)
                    cores = len(os.sched_getaffinity(0))
                    bound = max(restore, compute, (restore_cpu + compute_cpu) / cores)
                    self._samples.pipeline.append(Restored(length, percent, ask(), bound))


def _timed(measured_system: MeasuredSystem, work: Callable[[], float]) -> tuple[float, float]:
    """Do `work`; return (the seconds that it says it took, CPU seconds of the world's process)."""
    before = cpu_seconds(measured_system.world.pid)
    seconds = work()
    return seconds, cpu_seconds(measured_system.world.pid) - before


def _warm(measured_system: MeasuredSystem, model: str) -> float:
    began = time.monotonic()
    measured_system.world.warm(model)
    return time.monotonic() - began
