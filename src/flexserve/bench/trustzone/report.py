"""The report of a measurement on the emulated machine, with the paper's figures and the bars beside ours."""

from __future__ import annotations

import os
from typing import Any

from flexserve.bench.paper.report import PAPER as BOARD
from flexserve.bench.trustzone.inside_plan import InsidePlan
from flexserve.bench.trustzone.plan import Plan
from flexserve.simulator.machine import RK3588
from flexserve.units import GIB

_PAGES = 8 * GIB // 4096  # what the paper allocates and reclaims

PAPER: dict[str, dict[str, float]] = {
    "memory": {
        "flexmem_allocate_ns": 568.58e6 / _PAGES,  # of a page
        "cma_allocate_ns": 6440.67e6 / _PAGES,
        "flexmem_reclaim_ns": 80.50e6 / _PAGES,
        "cma_reclaim_ns": 732.85e6 / _PAGES,
        "allocate_speedup": 6440.67 / 568.58,
        "reclaim_speedup": 732.85 / 80.50,
    },
    "calls": {"protection_on_ms": 0.13, "hash_ms": 2.83},
    "programs": {"kept": BOARD["normal_world"]["kept_fraction"]},
    "npu": {"mode_switch": RK3588.mode_switch, "task_launch": RK3588.task_launch},  # seconds
    "ttft": BOARD["ttft"],
    "workflow": BOARD["workflow"],
}
ALLOCATE_BAR = RECLAIM_BAR = 5.0  # times faster than CMA
GRANT_BAR = 80_000  # nanoseconds of the guest for a GRANT of 512 pages
SWITCH_BAR, LAUNCH_BAR = 1e-3, 2e-3  # seconds
SHARE_BAR = 0.95  # of its speed that the guest's user of the NPU keeps beside an idle secure world


def assemble(plan: Plan, rounds: int, parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the report of what was measured in `rounds` rounds: `parts` as PAPER has them."""
    return {
        **head(plan, rounds),
        **{name: {**part, "paper": PAPER[name]} for name, part in parts.items()},
        "bars": [
            *_bars(plan.kernels[0].name, parts["memory"]["cells"], parts["calls"]["ns"]),
            *_npu_bars(parts["npu"]),
        ],
    }


def head(plan: Plan | InsidePlan, rounds: int) -> dict[str, Any]:
    """Return what a report says of the machines, emulated and real, that were measured in `rounds` rounds."""
    return {
        "platform": "trustzone",
        "label": "emulated",
        "machine": {"ram": plan.ram_bytes, "cpus": plan.cpus, "background_percent": plan.background},
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[1],
        "threads": plan.requests.threads,
        "rounds": rounds,
    }


def _bars(kernel: str, cells: list[dict[str, Any]], calls: dict[str, float]) -> list[dict[str, Any]]:
    """Return what must be reached, and whether it is: the worst of all sizes counts."""
    compared = [cell for cell in cells if cell["kernel"] == kernel and "allocate_speedup" in cell]
    bars: list[dict[str, Any]] = []
    for what, key, bar in (
        ("allocation, times faster than CMA", "allocate_speedup", ALLOCATE_BAR),
        ("reclamation, times faster than CMA", "reclaim_speedup", RECLAIM_BAR),
    ):
        if compared:
            found = min(cell[key] for cell in compared)
            bars.append({"what": what, "bar": bar, "found": found, "met": found >= bar})
    if "grant 512" in calls:
        found = calls["grant 512"]
        bars.append(_at_most("GRANT of 512 pages, nanoseconds", GRANT_BAR, found))
    return bars


def _npu_bars(npu: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what must be reached of the NPU: the slower of both mode switches counts."""
    seconds, kept = npu["seconds"], npu["share"]["kept"]["idle"]
    switch = max(seconds["enter"], seconds["leave"])
    return [
        _at_most("mode switch of the NPU, seconds", SWITCH_BAR, switch),
        _at_most("NPU_DRIVE until the job is started, seconds", LAUNCH_BAR, seconds["launch"]),
        {
            "what": "kept by the guest's use of the NPU beside an idle secure world",
            "bar": SHARE_BAR,
            "found": kept,
            "met": kept >= SHARE_BAR,
        },
    ]


def _at_most(what: str, bar: float, found: float) -> dict[str, Any]:
    return {"what": what, "bar": bar, "found": found, "met": found <= bar}
