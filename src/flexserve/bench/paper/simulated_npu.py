"""What the secure NPU brings on the simulated board, and what its protection costs there."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from flexserve.bench.paper.table import markdown
from flexserve.simulator.designs import Design
from flexserve.simulator.machine import PAPER_MODELS, RK3588, SimModel
from flexserve.simulator.rig import Rig

_PROMPTS = (32, 128, 512)  # tokens


def npu(flexserve: Design) -> dict[str, Any]:
    """Return FlexServe's prefill with the NPU, without it, and with a driver that changes hands whole.

    Seconds to the first token of a model that is in memory, so that nothing but compute counts; `cold`
    has the gain over the CPU with nothing in memory, where restoring hides much of it.
    """
    cpu = dataclasses.replace(flexserve, npu=False, switch=0.0, launch=0.0)
    # Detach in one world, attach in the other, and back: once before and once after each pass.
    whole_driver = dataclasses.replace(flexserve, switch=RK3588.driver_handover)
    cells = [
        _cell(model, prompt, flexserve, cpu, whole_driver) for model in PAPER_MODELS for prompt in _PROMPTS
    ]
    return {
        "mode_switch_seconds": RK3588.mode_switch,
        "task_launch_seconds": RK3588.task_launch,
        "driver_handover_seconds": RK3588.driver_handover,
        "prefill_gain_mean": statistics.mean(cell["gain"] for cell in cells),
        "cells": cells,
    }


def _cell(model: SimModel, prompt: int, secure: Design, cpu: Design, whole_driver: Design) -> dict[str, Any]:
    seconds = {
        "npu": _warm(secure, model, prompt),
        "cpu": _warm(cpu, model, prompt),
        "whole_driver": _warm(whole_driver, model, prompt),
    }
    cold = [Rig(design, [model], budget=0).ask(model.name, prompt).ttft for design in (cpu, secure)]
    return {
        "model": model.name,
        "prompt": prompt,
        "seconds": seconds,
        "gain": seconds["cpu"] / seconds["npu"],
        "cold_gain": cold[0] / cold[1],
        "protection_part": secure.pass_overhead / seconds["npu"],
    }


def _warm(design: Design, model: SimModel, prompt: int) -> float:
    rig = Rig(design, [model], budget=RK3588.memory)
    rig.ask(model.name, prompt)
    return rig.ask(model.name, prompt).ttft


def npu_table(found: dict[str, Any]) -> str:
    """Return the cells as Markdown."""
    rows = [
        ("model", "prompt", "CPU", "NPU", "gain", "… cold", "switches and launch", "whole driver handed over")
    ]
    for cell in found["cells"]:
        seconds = cell["seconds"]
        rows.append(
            (
                *(cell["model"], str(cell["prompt"])),
                *(f"{seconds[name]:.2f}" for name in ("cpu", "npu")),
                *(f"{cell[name]:.1f}×" for name in ("gain", "cold_gain")),
                f"{cell['protection_part']:.2%}",
                f"{seconds['whole_driver']:.2f}",
            )
        )
    return markdown(rows)
