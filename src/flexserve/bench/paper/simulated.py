"""`flexserve bench paper --platform sim`: the paper's experiments on the simulated board.

All numbers are of a model in virtual time, from published constants (flexserve.simulator.machine)
and the policies of flexserve.policy. They are never to be mixed with measured ones.

Time to first token, over models × prompts × background pressure. Each cell asks once, so that a
system keeps what it keeps; then a load comes up to a peak, and the normal world recalls what it
needs; then it is gone again, and the request that counts comes. The *cold* setting is the one that the
paper's figures are for: the cache is off, so nothing is kept at all.

Workflows, over call patterns × prompts × lengths of the answer: calls follow each other at once, and
a cache of 4 GB serves all models. As many calls go before those that count, so that every system is
in its steady state; the time with them is given beside.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
from collections.abc import Iterable
from typing import Any

from flexserve.bench.paper.simulated_npu import npu
from flexserve.bench.paper.simulated_table import table
from flexserve.simulator.designs import Design, Keeping, designs
from flexserve.simulator.machine import (
    LLAMA_3_1_8B,
    LLAMA_3_2_3B,
    PAPER_MODELS,
    QWEN3_1_7B,
    RK3588,
    SimModel,
)
from flexserve.simulator.pipeline import Parts
from flexserve.simulator.rig import Rig
from flexserve.simulator.server import Ticket
from flexserve.units import GIB

__all__ = ["run", "table"]

# What the paper publishes, beside which a report puts ours; `pipeline` is TZ-LLM's scheduler.
PAPER = {
    "ttft": {
        "speedup_over_strawman_mean": 10.05,
        "speedup_over_strawman_opt_mean": 2.44,
        "over_nw_base_mean": 1.0441,
    },
    "decode": {"speed_over_nw_base": 1 - 0.0301},
    "workflow": {"speedup_over_strawman_max": 24.30, "speedup_over_strawman_opt_max": 4.05},
    "normal_world": {"kept_fraction": 0.972},
    "pipeline": {"over_bound_max": 1.099},
}
PROMPTS = (32, 128, 512)  # tokens
ANSWERS = (1, 64)  # tokens: a decision, as a router or a guard makes; the paper's length
CACHE = 4 * GIB  # of the workflows
_LOAD = 8 * GIB  # background, when nothing else is said
_PEAKS = {"none": _LOAD, "some": 11 * GIB, "much": 13 * GIB, "all": 16 * GIB}  # bytes of others' load
_RECALLED = (0, 25, 50, 75, 100)  # percent
_CALLS = 12  # of a workflow, after as many that do not count
_VARIANTS = ("strawman_restart", "strawman_opt_overlapped")
_BASELINES = ("strawman", "strawman_opt", "nw_base")

Cell = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Workflow:
    """Models that call one another: `calls` is one round."""

    name: str
    calls: tuple[SimModel, ...]

    @property
    def models(self) -> list[SimModel]:
        """The models in it, each once."""
        return list(dict.fromkeys(self.calls))


def workflows(seed: int) -> list[Workflow]:
    """Return the paper's patterns: two- and three-model loops, and random calls of all models."""
    calls = random.Random(seed).choices(PAPER_MODELS, k=_CALLS)
    return [
        Workflow("loop of 2", (QWEN3_1_7B, LLAMA_3_2_3B)),
        Workflow("loop of 3", (QWEN3_1_7B, LLAMA_3_2_3B, LLAMA_3_1_8B)),
        Workflow("random", tuple(calls)),
    ]


def run(seed: int = 0) -> dict[str, Any]:
    """Simulate everything and return the report. The same seed gives the same report."""
    systems = designs(RK3588)
    compared = {name: systems[name] for name in ("flexserve", *_BASELINES)}
    cold = [_cold(compared, model, prompt) for model in PAPER_MODELS for prompt in PROMPTS]
    pressed = [
        _pressed(compared, model, prompt, peak)
        for peak in _PEAKS
        for model in PAPER_MODELS
        for prompt in PROMPTS
    ]
    flows = [
        _workflow(compared, flow, prompt, answer)
        for flow in workflows(seed)
        for prompt in PROMPTS
        for answer in ANSWERS
    ]
    bounds = [
        _bound(systems["flexserve"], m, p, part) for m in PAPER_MODELS for p in PROMPTS for part in _RECALLED
    ]
    decode = [_decode(compared, model) for model in PAPER_MODELS]
    return {
        "platform": "sim",
        "machine": "NanoPC-T6 (RK3588, 16 GB), modelled",
        "seed": seed,
        "ttft": {
            "workload": "models × prompts × background pressure; the paper has no figure for it",
            **_means(pressed),
            "by_pressure": {peak: _means(c for c in pressed if c["pressure"] == peak) for peak in _PEAKS},
            "cells": pressed,
        },
        "cold": {
            "workload": "models × prompts with the cache off, as the paper measures",
            **_means(cold),
            "paper": PAPER["ttft"],
            "cells": cold,
        },
        "decode": {
            "speed_over_nw_base": statistics.mean(cell["speed_over_nw_base"] for cell in decode),
            "paper": PAPER["decode"],
            "cells": decode,
        },
        "workflow": {
            **_maxima(flows),
            "paper": PAPER["workflow"],
            "by_answer": {
                str(tokens): _maxima(c for c in flows if c["answer"] == tokens) for tokens in ANSWERS
            },
            "cells": flows,
        },
        "normal_world": {
            "kept_fraction": 1 / (1 + RK3588.stage2_slowdown),  # nothing else that slows apps is modelled
            "paper": PAPER["normal_world"],
        },
        "pipeline": {
            "over_bound_max": max(cell["over_bound"] for cell in bounds),
            "paper": PAPER["pipeline"],
            "cells": bounds,
        },
        "npu": npu(systems["flexserve"]),
        "variants": {name: _variant(systems, name) for name in _VARIANTS},
    }


# ---- experiments -----------------------------------------------------------------------------------


def _cold(systems: dict[str, Design], model: SimModel, prompt: int) -> Cell:
    """One request with nothing kept: the paper's single-model setting."""
    tickets = {
        name: Rig(design, [model], budget=0).ask(model.name, prompt) for name, design in systems.items()
    }
    return _ttft_cell(model, prompt, tickets)


def _variant(systems: dict[str, Design], name: str) -> dict[str, Any]:
    """A baseline built in another way, cold. Apart, so that it is never mixed into the others' figures."""
    pair = {key: systems[key] for key in ("flexserve", name)}
    cells = [_cold(pair, model, prompt) for model in PAPER_MODELS for prompt in PROMPTS]
    gains = [cell["seconds"][name] / cell["seconds"]["flexserve"] for cell in cells]
    return {"name": systems[name].name, "speedup_mean": statistics.mean(gains), "cells": cells}


def _pressed(systems: dict[str, Design], model: SimModel, prompt: int, peak: str) -> Cell:
    """A request after others' load had its peak."""
    tickets, kept = {}, {}
    for name, design in systems.items():
        rig = Rig(design, [model], budget=0 if design.keeping is Keeping.NOTHING else RK3588.memory)
        rig.ask(model.name, prompt)
        rig.press(_PEAKS[peak])
        rig.dram.background = _LOAD
        kept[name] = rig.server.residence.weights[model.name].resident_fraction
        tickets[name] = rig.ask(model.name, prompt)
    return _ttft_cell(model, prompt, tickets) | {"pressure": peak, "kept": kept}


def _ttft_cell(model: SimModel, prompt: int, tickets: dict[str, Ticket]) -> Cell:
    seconds = {name: ticket.ttft for name, ticket in tickets.items()}
    return {
        "model": model.name,
        "prompt": prompt,
        "seconds": seconds,
        **_speedups(seconds),
        "parts": {name: _parts(ticket) for name, ticket in tickets.items()},
    }


def _parts(ticket: Ticket) -> dict[str, float]:
    """Return the seconds of work before the first token, and how many of them others hid."""
    parts: Parts = ticket.parts
    return dataclasses.asdict(parts) | {"hidden": max(0.0, parts.work - ticket.ttft)}


def _bound(design: Design, model: SimModel, prompt: int, recalled: int) -> Cell:
    """A request after `recalled` percent of the weights went, beside what no pipeline can beat."""
    rig = Rig(design, [model], budget=RK3588.memory)
    rig.ask(model.name, prompt)
    weights = rig.server.residence.weights[model.name]
    weights.drop(weights.resident * recalled // 100)
    ticket = rig.ask(model.name, prompt)
    return {
        "model": model.name,
        "prompt": prompt,
        "recalled": recalled,
        "seconds": ticket.ttft,
        "bound": ticket.parts.bound,
        "over_bound": ticket.ttft / ticket.parts.bound,
    }


def _decode(systems: dict[str, Design], model: SimModel) -> Cell:
    """Speed of generation after the first token, in tokens per second."""
    speed = {}
    for name, design in systems.items():
        ticket = Rig(design, [model], budget=0).ask(model.name, 128, ANSWERS[-1])
        assert ticket.ended is not None
        speed[name] = (ticket.answer - 1) / (ticket.ended - ticket.asked - ticket.ttft)
    return {"model": model.name, "speed": speed, "speed_over_nw_base": speed["flexserve"] / speed["nw_base"]}


def _workflow(systems: dict[str, Design], flow: Workflow, prompt: int, answer: int) -> Cell:
    """The calls of a workflow, one after the other: seconds from the first call to the last answer."""
    seconds, ttft, whole = {}, {}, {}
    for name, design in systems.items():
        rig = Rig(design, flow.models, budget=0 if design.keeping is Keeping.NOTHING else CACHE)
        before = rig.simulation.now
        calls = flow.calls * (_CALLS // len(flow.calls))
        for call in calls:
            rig.ask(call.name, prompt, answer)
        start = rig.simulation.now
        tickets = [rig.ask(call.name, prompt, answer) for call in calls]
        seconds[name], whole[name] = rig.simulation.now - start, rig.simulation.now - before
        ttft[name] = statistics.mean(ticket.ttft for ticket in tickets)
    return {
        "workflow": flow.name,
        "prompt": prompt,
        "answer": answer,
        "calls": _CALLS,
        "seconds": seconds,
        **_speedups(seconds),
        "with_start": {"seconds": whole, **_speedups(whole)},
        "ttft": {"seconds": ttft, **_speedups(ttft)},
    }


# ---- summaries -------------------------------------------------------------------------------------


def _speedups(seconds: dict[str, float]) -> dict[str, float]:
    return {
        f"speedup_over_{name}": seconds[name] / seconds["flexserve"] for name in _BASELINES if name in seconds
    }


def _means(cells: Iterable[Cell]) -> dict[str, float]:
    found = list(cells)
    return {
        "speedup_over_strawman_mean": statistics.mean(c["speedup_over_strawman"] for c in found),
        "speedup_over_strawman_opt_mean": statistics.mean(c["speedup_over_strawman_opt"] for c in found),
        "over_nw_base_mean": statistics.mean(1 / c["speedup_over_nw_base"] for c in found),
    }


def _maxima(cells: Iterable[Cell]) -> dict[str, float]:
    found = list(cells)
    return {
        "speedup_over_strawman_max": max(c["speedup_over_strawman"] for c in found),
        "speedup_over_strawman_opt_max": max(c["speedup_over_strawman_opt"] for c in found),
    }
