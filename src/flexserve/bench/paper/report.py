"""The report of a measurement: one object with the figures, the paper's beside them, and all cells."""

from __future__ import annotations

import os
import statistics
from typing import Any

from flexserve.bench.paper.plan import System
from flexserve.bench.paper.samples import Cell, Restored, Samples, largest_speedup, mean_speedup
from flexserve.protocol.messages import Welcome

PAPER: dict[str, dict[str, float]] = {
    "ttft": {
        "speedup_over_strawman_mean": 10.05,
        "speedup_over_strawman_opt_mean": 2.44,
        "over_nw_base_mean": 1.0441,
    },
    "workflow": {"speedup_over_strawman_max": 24.30, "speedup_over_strawman_opt_max": 4.05},
    "decode": {"speed_over_nw_base": 0.9699},
    "pipeline": {"over_bound_max": 1.099},  # TZ-LLM, on the same board
    "normal_world": {"kept_fraction": 0.972},
}


def assemble(samples: Samples, welcome: Welcome) -> dict[str, Any]:
    """Return the report of what was measured here, but for the normal world's application."""
    plan = samples.plan
    return {
        "platform": "linux",
        "protection": welcome.protection,
        "protected": welcome.protected,
        "engine": welcome.engine,
        "cores": len(os.sched_getaffinity(0)),
        "threads": plan.threads,
        "rounds": samples.rounds,
        "ttft": _ttft(samples.requests.all()),
        "workflow": _workflow(samples.workflows.all()),
        "pipeline": _pipeline(plan.shapes[plan.pipeline_shape], samples.pipeline),
        "decode": _decode(samples.decode),
        "restarted_strawman": {
            "prompt": plan.decode_prompt,
            "seconds": {model: statistics.median(found) for model, found in samples.restarted.items()},
        },
    }


def _ttft(cells: list[Cell]) -> dict[str, Any]:
    by_kept = {kept: [c for c in cells if c.key["kept"] == kept] for kept in {c.key["kept"] for c in cells}}
    return {
        **_means(cells),
        "paper": PAPER["ttft"],
        "by_kept": {str(kept): _means(found) for kept, found in sorted(by_kept.items(), reverse=True)},
        # Nothing that stands between a request and its prompt's computation can be faster than absent.
        "limit": {
            f"speedup_over_{system.value}_mean": statistics.mean(_limit(c, system) for c in cells)
            for system in (System.STRAWMAN, System.STRAWMAN_OPT)
        },
        "cells": [cell.as_json() for cell in cells],
    }


def _means(cells: list[Cell]) -> dict[str, float]:
    return {
        "speedup_over_strawman_mean": mean_speedup(cells, System.STRAWMAN),
        "speedup_over_strawman_opt_mean": mean_speedup(cells, System.STRAWMAN_OPT),
        "over_nw_base_mean": statistics.mean(1 / cell.speedup(System.NW_BASE) for cell in cells),
    }


def _limit(cell: Cell, system: System) -> float:
    """Return `system`'s time over that of computing the prompt alone, by the fastest that computed it."""
    return cell.seconds(system) / min(cell.parts(each)["compute"] for each in cell.requests)


def _workflow(cells: list[Cell]) -> dict[str, Any]:
    return {
        "speedup_over_strawman_max": largest_speedup(cells, System.STRAWMAN),
        "speedup_over_strawman_opt_max": largest_speedup(cells, System.STRAWMAN_OPT),
        "paper": PAPER["workflow"],
        "limit": {
            f"speedup_over_{system.value}_max": max(_workflow_limit(cell, system) for cell in cells)
            for system in (System.STRAWMAN, System.STRAWMAN_OPT)
        },
        "cells": [cell.as_json() for cell in cells],
    }


def _workflow_limit(cell: Cell, system: System) -> float:
    """Return `system`'s time over that of computing prompts and answers alone."""
    alone = (cell.parts(each) for each in cell.requests)
    return cell.seconds(system) / min(parts["compute"] + parts["decode"] for parts in alone)


def _pipeline(model: str, samples: list[Restored]) -> dict[str, Any]:
    cells = [
        _restored(model, *key, samples) for key in dict.fromkeys((s.prompt, s.recalled) for s in samples)
    ]
    return {
        "over_bound_max": max(cell["over_bound"] for cell in cells),
        "paper": PAPER["pipeline"],
        "cells": cells,
    }


def _restored(model: str, prompt: int, recalled: int, samples: list[Restored]) -> dict[str, Any]:
    """Return one cell; its ratio is the median of ratios within a round."""
    found = [sample for sample in samples if (sample.prompt, sample.recalled) == (prompt, recalled)]
    return {
        "model": model,
        "prompt": prompt,
        "recalled": recalled,
        "seconds": statistics.median(sample.ttft for sample in found),
        "bound": statistics.median(sample.bound for sample in found),
        "over_bound": statistics.median(sample.ttft / sample.bound for sample in found),
        "samples": [sample.ttft for sample in found],
        "bounds": [sample.bound for sample in found],
    }


def _decode(samples: dict[str, dict[System, list[float]]]) -> dict[str, Any]:
    cells = [
        {"model": model, "speed": {each.value: statistics.median(found) for each, found in by_system.items()}}
        for model, by_system in samples.items()
    ]
    ratios = [
        ours / theirs
        for by_system in samples.values()
        for ours, theirs in zip(
            by_system.get(System.FLEXSERVE, []), by_system.get(System.NW_BASE, []), strict=False
        )
    ]
    over = {"speed_over_nw_base": statistics.median(ratios)} if ratios else {}
    return {**over, "paper": PAPER["decode"], "cells": cells}
