"""`flexserve bench paper --platform trustzone`: four systems on the machine, small; and its figures."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flexserve.bench.paper import main
from flexserve.bench.paper.main import PaperOptions
from flexserve.bench.paper.plan import System, Workflow
from flexserve.bench.paper.report import PAPER
from flexserve.bench.paper.requests import Subject
from flexserve.bench.trustzone import inside, inside_plan, inside_plots, inside_report
from flexserve.bench.trustzone.inside import InsideRequests, decoding, measured_rounds, program_of
from flexserve.emulator import trusted_app
from flexserve.protocol.answers import Finished, Timings, Usage
from flexserve.protocol.launch import TEE_CLIENT
from flexserve.testing.machines import images_of
from flexserve.units import MIB

WEIGHTS = 40 * MIB
COMPUTE = 2.0  # seconds of a prompt …
RESTORE = 1.0  # … of bringing all weights in …
ALLOCATE = {System.STRAWMAN: 0.5, System.STRAWMAN_OPT: 0.5, System.FLEXSERVE: 0.25, System.NW_BASE: 0.0}


class PlayedSystem:
    """A system that takes as long as ALLOCATE, RESTORE and COMPUTE say; and its machine."""

    def __init__(self, system: System, log: list[str]) -> None:
        self.system, self.log = system, log
        self.world = self
        self.resident: dict[str, bool] = {}
        self.allocated = 0.0
        self.under_load = False

    def open(self, model: str) -> None:
        self.resident[model] = False

    def recall(self, demand: int | None) -> None:
        assert demand is None
        self.resident = dict.fromkeys(self.resident, False)

    def warm(self, model: str) -> None:
        self._bring(model)

    def weights(self, model: str) -> int:
        return WEIGHTS * (model in self.resident)

    def press(self, limit: int) -> None:
        assert limit == WEIGHTS

    def _bring(self, model: str) -> float:
        if self.resident[model]:
            return 0.0
        self.resident[model] = True
        self.allocated += ALLOCATE[self.system]
        return RESTORE

    def ask(self, model: str, prompt: str, tokens: int, next_model: str | None = None) -> Finished:
        beside = "load" if self.under_load else "nothing"
        self.log.append(f"{self.system.value}: {tokens} beside {beside}")
        before, restore = self.allocated, self._bring(model)
        ttft = self.allocated - before + restore + COMPUTE
        decode = (tokens - 1) * (1.1 if self.system is System.FLEXSERVE else 1.0)
        if not self.system.keeps:
            self.recall(None)
        if self.system is System.FLEXSERVE:  # memory comes with what is read
            restore += self.allocated - before
        timings = Timings(ttft=1000 * ttft, restore=1000 * restore, decode=1000 * decode)
        return Finished(1, "length", Usage(8, tokens), timings)

    @contextlib.contextmanager
    def background(self, percent: int) -> Iterator[None]:
        assert percent == 40
        self.under_load = True
        yield
        self.under_load = False

    def allocating(self) -> float:
        return self.allocated


@pytest.fixture
def log() -> list[str]:
    return []


def played(plan: inside_plan.InsidePlan, log: list[str]) -> InsideRequests:
    """What measures played systems."""

    @contextlib.contextmanager
    def stand(system: System) -> Iterator[Any]:
        it = PlayedSystem(system, log)
        yield it, it

    return InsideRequests(plan, stand, lambda _what: None)


@pytest.fixture
def report(log: list[str]) -> dict[str, Any]:
    """The report of two rounds of played systems."""
    plan = inside_plan.quick()
    requests = played(plan, log)
    subjects = [Subject(shape, shape, {8: "p8"}) for shape in plan.requests.shapes]
    for number in range(2):
        requests.round(subjects, number)
    return inside_report.assemble(plan, 2, requests.report())


def test_gains_are_ratios_of_what_was_measured_by_what_is_kept(report: dict[str, Any]) -> None:
    by_kept = report["ttft"]["by_kept"]
    assert by_kept["1.0"]["speedup_over_strawman_mean"] == pytest.approx(3.5 / 2)
    assert by_kept["0.0"]["speedup_over_strawman_mean"] == pytest.approx(3.5 / 3.25)
    assert by_kept["1.0"]["over_nw_base_mean"] == pytest.approx(1.0)
    assert by_kept["0.0"]["over_nw_base_mean"] == pytest.approx(3.25 / 3)
    assert report["decode"]["speed_over_nw_base"] == pytest.approx(1 / 1.1)
    assert report["ttft"]["paper"] == PAPER["ttft"]


def test_the_parts_of_a_time_to_first_token_are_all_of_it(report: dict[str, Any]) -> None:
    for cell in report["ttft"]["cells"]:
        for name, parts in cell["parts"].items():
            assert sum(parts.values()) == pytest.approx(cell["seconds"][name])
            cold = not cell["kept"] or name.startswith("strawman")
            assert parts["allocate"] == pytest.approx(ALLOCATE[System(name)] if cold else 0)
            assert parts["restore"] == pytest.approx(RESTORE if cold else 0)


def test_every_request_is_asked_beside_others_memory_and_another_system_begins_each_round(
    report: dict[str, Any], log: list[str]
) -> None:
    assert report["rounds"] == 2
    assert {line.partition(": ")[2] for line in log} == {"1 beside load", "16 beside nothing"}
    assert log[0].startswith("flexserve: ")
    assert log[len(log) // 2].startswith("strawman: ")


@pytest.mark.parametrize(("seconds", "rounds"), [(10.0, 1), (19.0, 1), (20.0, 2), (1000.0, 3)])
def test_no_round_begins_that_would_probably_end_too_late(seconds: float, rounds: int) -> None:
    plan = dataclasses.replace(inside_plan.full(), seconds=seconds)
    subjects = [Subject(shape, shape, {8: "p8", 32: "p32"}) for shape in plan.requests.shapes]
    kept: list[dict[str, Any]] = []
    times = iter(range(0, 1000, 10))
    found = measured_rounds(plan, played(plan, []), subjects, kept.append, lambda: float(next(times)))
    assert [report["rounds"] for report in kept] == list(range(1, rounds + 1))
    assert found == kept[-1]


def test_of_decoding_the_ratios_within_a_round_count() -> None:
    found = decoding({"a": {System.FLEXSERVE: [9.0, 5.0, 8.0], System.NW_BASE: [10.0, 5.0, 16.0]}})
    assert found["speed_over_nw_base"] == 0.9
    assert found["cells"][0]["per_second"] == {"flexserve": 8.0, "nw_base": 10.0}
    assert decoding({}) == {"cells": []}


def test_the_table_says_what_it_is_and_has_the_papers_numbers(report: dict[str, Any]) -> None:
    text = inside_report.table(report)
    for words in (
        *("EMULATED", "only ratios count", "UNPROTECTED", "Reading:"),
        *("10.05×", "2.44×", "24.30×", "4.05×", "+4.41%", "-3.01%"),
        *("FlexServe", "Strawman", "Strawman-OPT", "NW-Base", "1.75×", "load and decrypt"),
    ):
        assert words in text


def test_plots_are_drawn_as_png_and_as_svg(report: dict[str, Any], tmp_path: Path) -> None:
    files = inside_plots.plot(report, tmp_path / "inside.png")
    assert [file.suffix for file in files] == [".png", ".svg"]
    assert all(file.stat().st_size > 10_000 for file in files)


def test_only_flexserve_is_the_product() -> None:
    assert program_of(System.FLEXSERVE) == (TEE_CLIENT,)
    assert program_of(System.STRAWMAN_OPT) == ("flexserve.bench.tee_client", "strawman-opt")


@pytest.mark.parametrize("chosen", [inside_plan.full(), inside_plan.quick()])
def test_plans_fit_their_machines(chosen: inside_plan.InsidePlan) -> None:
    assert chosen.area % (4 * MIB) == 0
    assert chosen.area < chosen.ram_bytes * (100 - chosen.background) / 100


def test_the_command_measures_inside_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked: list[inside_plan.InsidePlan] = []

    def measure(chosen: inside_plan.InsidePlan, folder: Path, say: object) -> dict[str, str]:
        asked.append(chosen)
        return {"folder": folder.name}

    monkeypatch.setattr(inside, "measure", measure)
    assert main.run(PaperOptions(tmp_path, platform="trustzone", quick=True, as_json=True)) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": "trustzone"}
    assert asked == [inside_plan.quick()]


@pytest.mark.vm
@pytest.mark.engine
def test_four_systems_answer_on_real_machines_and_strawmen_have_contiguous_memory(tmp_path: Path) -> None:
    if trusted_app.built(trusted_app.default_cache()) is None:
        pytest.skip("the trusted application is not built of these sources: `make trusted-app`")
    images_of(512 * MIB, 2)  # skips where no machine can be had
    quick = inside_plan.quick()
    requests = dataclasses.replace(
        quick.requests,
        shapes=("small-llama",),
        kept=(0.0,),
        workflows=(Workflow("one call", (0,), tokens=1),),
        decode_tokens=2,
    )
    plan = dataclasses.replace(quick, requests=requests, ram_bytes=512 * MIB, background=8)
    found = inside.measure(plan, tmp_path, lambda _what: None)
    (cell,) = found["ttft"]["cells"]
    assert set(cell["seconds"]) == {system.value for system in System}
    for name in ("flexserve", "strawman", "strawman_opt"):
        assert cell["parts"][name]["allocate"] > 0
    assert cell["parts"]["nw_base"]["allocate"] == 0  # its kernel gives it memory as it gives any program
    assert json.loads((tmp_path / "inside-report.json").read_text()) == json.loads(json.dumps(found))
