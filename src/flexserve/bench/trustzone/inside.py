"""`flexserve bench paper --platform trustzone`: four systems whose models compute on the machine's own CPUs.

Three of them compute at S-EL0. NW-Base is the same application as a process of the guest.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flexserve.bench.paper.measured_system import MeasuredSystem
from flexserve.bench.paper.models import Models
from flexserve.bench.paper.plan import System
from flexserve.bench.paper.requests import Subject
from flexserve.bench.paper.samples import Cell, Request
from flexserve.bench.report import keep
from flexserve.bench.trustzone import inside_report
from flexserve.bench.trustzone.inside_plan import InsidePlan
from flexserve.bench.trustzone.measured_machine import MeasuredMachine, Say
from flexserve.bench.trustzone.requests import STRAWMEN, Requests, Standing
from flexserve.emulator import store_disk, trusted_app
from flexserve.emulator.build import Options, build
from flexserve.emulator.inner_core import InnerCore
from flexserve.emulator.machine import Machine
from flexserve.platforms.trustzone.disk_image import DiskImage, FileBlocks
from flexserve.protocol.answers import Timings
from flexserve.protocol.launch import TEE_CLIENT

COMPARED = (System.FLEXSERVE, System.NW_BASE)  # by how fast they decode, as the paper does


class InsideRequests(Requests):
    """Requests to all four systems, and how fast two of them decode."""

    systems: Sequence[System] = tuple(System)

    def __init__(self, plan: InsidePlan, stand: Callable[[System], Standing], say: Say) -> None:
        super().__init__(plan.requests, plan.background, stand, say)
        self.decode: dict[str, dict[System, list[float]]] = {}  # tokens a second, by shape

    def _ask_all(self, measured: MeasuredMachine, measured_system: MeasuredSystem, subject: Subject) -> None:
        super()._ask_all(measured, measured_system, subject)
        if measured_system.system not in COMPARED:
            return
        prompt = subject.prompts[self._plan.decode_prompt]
        measured_system.world.warm(subject.model)
        finished = measured_system.ask(subject.model, prompt, self._plan.decode_tokens)
        if steps := max(0, finished.usage.completion_tokens - 1):
            speeds = self.decode.setdefault(subject.shape, {each: [] for each in COMPARED})
            speeds[measured_system.system].append(steps / finished.timings.decode * 1000)

    def _request(self, system: System, timings: Timings, allocating: float) -> Request:
        """Return a request and its parts, which are its time to first token."""
        ttft, restore = timings.ttft / 1000, timings.restore / 1000
        if system is System.FLEXSERVE:  # the disk's pages are allocated while it waits for weights
            restore = max(0.0, restore - allocating)
        compute = max(0.0, ttft - allocating - restore)
        return Request(ttft, {"allocate": allocating, "restore": restore, "compute": compute})

    def report(self) -> dict[str, Any]:
        """Return the figures, with those of decoding."""
        return {**super().report(), "decode": decoding(self.decode)}

    def _means(self, cells: Sequence[Cell]) -> dict[str, float]:
        base = statistics.mean(1 / cell.speedup(System.NW_BASE) for cell in cells)
        return {**super()._means(cells), "over_nw_base_mean": base}


def decoding(found: dict[str, dict[System, list[float]]]) -> dict[str, Any]:
    """Return the medians of speeds, in tokens a second, and of ratios within a round."""
    cells = []
    for shape, speeds in found.items():
        pairs = zip(*(speeds[each] for each in COMPARED), strict=True)
        ratio = statistics.median(ours / base for ours, base in pairs)
        medians = {each.value: statistics.median(speeds[each]) for each in COMPARED}
        cells.append({"model": shape, "per_second": medians, "speed_over_nw_base": ratio})
    if not cells:
        return {"cells": []}
    mean = statistics.mean(cell["speed_over_nw_base"] for cell in cells)
    return {"speed_over_nw_base": mean, "cells": cells}


def standing(plan: InsidePlan, models: Models, disk: Path, say: Say) -> Callable[[System], Standing]:
    """Return what has a system run on a machine that was just booted. Builds what is missing, first.

    `disk`: the file of each machine's disk. Raises as trusted_app.build.
    """
    cache = trusted_app.default_cache()
    application = trusted_app.build(cache, say).application

    @contextlib.contextmanager
    def stand(system: System) -> Iterator[tuple[MeasuredMachine, MeasuredSystem]]:
        unprotected, contiguous = system is System.NW_BASE, system in STRAWMEN
        images = build(
            cache,
            ram_bytes=plan.ram_bytes,
            cpus=plan.cpus,
            progress=say,
            options=Options(contiguous=plan.area if contiguous else 0, bootargs=plan.bootargs),
            application=None if unprotected else application,
            unprotected=application if unprotected else None,
        )
        secret = models.key.read_bytes()

        def make() -> Machine:
            return Machine(images, ram_bytes=plan.ram_bytes, cpus=plan.cpus, disks=[disk], secret=secret)

        with InnerCore(make) as core:
            core.renew()
            measured = MeasuredMachine(core.machine)
            measured.configure("idle_ms", 0)
            measured.configure("contiguous", int(contiguous))
            if unprotected:
                core.machine.agent.ask("start", "application")
            program = program_of(system)
            with MeasuredSystem(system, plan.requests, models, core, program) as measured_system:
                yield measured, measured_system

    return stand


def program_of(system: System) -> tuple[str, ...]:
    """Return the program that drives the application of a system."""
    if system is System.FLEXSERVE:
        return (TEE_CLIENT,)
    return ("flexserve.bench.tee_client", system.value.replace("_", "-"))


def measure(plan: InsidePlan, folder: Path, say: Say) -> dict[str, Any]:
    """Measure `plan` with models kept in `folder`; return the report, a JSON-able object.

    One machine runs at a time. In each round everything is measured once. What is known after each round is
    in `folder`/inside-report.json. Raises NormalWorldError when a machine cannot be had.
    """
    paper, models, file = plan.requests, Models(folder, say), folder / "inside-report.json"
    subjects = [
        Subject(shape, *models.make(shape, paper.quant, paper.lengths, paper.threads))
        for shape in paper.shapes
    ]
    with empty_disk(folder) as disk:
        requests = InsideRequests(plan, standing(plan, models, disk, say), say)
        return measured_rounds(plan, requests, subjects, lambda found: keep(found, file, say))


@contextlib.contextmanager
def empty_disk(folder: Path) -> Iterator[Path]:
    """Have the file of a disk in `folder`, for all systems: who opens a model first has its image sealed."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        disk = Path(place) / "inside.disk"
        with FileBlocks.create(disk, store_disk.SIZE) as blocks:
            DiskImage.create(blocks, store_disk.SIZE)
        yield disk


def measured_rounds(
    plan: InsidePlan,
    requests: InsideRequests,
    subjects: Sequence[Subject],
    keep_report: Callable[[dict[str, Any]], None],
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Measure one round, and more of them while there is time for one as long as the last; return the report.

    `clock`: seconds.
    """
    found: dict[str, Any] = {}
    began = ended = clock()
    for number in range(plan.requests.rounds):
        before = ended
        requests.round(subjects, number)
        found = inside_report.assemble(plan, number + 1, requests.report())
        keep_report(found)
        ended = clock()
        if ended - began + ended - before > plan.seconds:
            break
    return found
