"""`flexserve bench paper --platform trustzone --secure-world host`, small, and how its figures are made.

The machine is played; with `--platform trustzone-host`, as in `make test-trustzone`, it is the emulated one.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from played_machine import play

from flexserve.bench.paper import main
from flexserve.bench.paper.main import PaperOptions
from flexserve.bench.paper.plan import Workflow
from flexserve.bench.trustzone import plan, report, runner
from flexserve.bench.trustzone.memory import Sample, cell_of
from flexserve.bench.trustzone.npu_use import NpuUse, Prompt
from flexserve.bench.trustzone.plan import Allocator, Kernel, NpuPart
from flexserve.bench.trustzone.table import table
from flexserve.errors import CallerError
from flexserve.testing.machines import images_of
from flexserve.units import MIB

PARTS = ("memory", "calls", "programs", "npu", "ttft", "workflow")


def small() -> plan.Plan:
    quick = plan.quick(1)
    requests = dataclasses.replace(
        quick.requests,
        shapes=("small-llama", "small-qwen2"),
        prompts=(8,),
        workflows=(Workflow("loop", (0, 1), hints=True),),
        call_prompt=8,
        call_tokens=2,
        decode_prompt=8,
        pipeline_prompts=(),
    )
    return dataclasses.replace(
        quick,
        ram_bytes=512 * MIB,
        background=8,  # the least: each request is asked beside it
        kernels=(Kernel("plain", "init_on_alloc=0 transparent_hugepage=never", (8 * MIB,)),),
        repeats=1,
        requests=requests,
        npu=NpuPart("small-llama", prompts=(40,), handovers=2, launches=2, turns=1, tokens=4),
    )


@pytest.fixture(scope="module")
def measured(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("trustzone")
    with pytest.MonkeyPatch.context() as patch:
        if pytestconfig.getoption("platform") == "trustzone-host":
            images_of(512 * MIB, 2)  # skips where no machine can be had
        else:
            play(patch)
        found = runner.measure(small(), folder, lambda _what: None)
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(found))
    return found


def test_everything_is_measured_labelled_and_beside_the_papers_numbers(measured: dict[str, Any]):
    assert (measured["platform"], measured["label"]) == ("trustzone", "emulated")
    for part in PARTS:
        assert measured[part]["paper"] == report.PAPER[part]
    assert measured["ttft"]["speedup_over_strawman_mean"] > 0
    assert measured["workflow"]["speedup_over_strawman_opt_max"] > 0


def test_memory_comes_and_goes_through_both_allocators(measured: dict[str, Any]):
    (cell,) = measured["memory"]["cells"]
    assert cell["refused"] == {"flexmem": 0, "cma": 0}
    for allocator in ("flexmem", "cma"):
        assert min(cell[allocator]["seconds"].values()) > 0
        assert sum(cell[allocator]["orders"]) == 8 * MIB // 4096
    assert cell["cma"]["orders"][1:] == [0] * 9  # a run is handed over as single pages


def test_every_call_has_a_price(measured: dict[str, Any]):
    spent = measured["calls"]["ns"]
    assert {"empty", "version", "grant 512", "return 512", "take 512", "protection on"} <= set(spent)
    assert min(spent.values()) > 0
    assert spent["take 512"] > spent["return 512"]  # which clears nothing


def test_every_program_ran_under_every_condition(measured: dict[str, Any]):
    assert [cell["program"] for cell in measured["programs"]["cells"]] == ["memory", "syscalls", "btree"]
    for cell in measured["programs"]["cells"]:
        assert set(cell["per_second"]) == {"off", "idle", "inferring"}
        assert min(cell["per_second"].values()) > 0


def test_strawmen_allocate_for_each_request_and_flexserve_for_what_it_lacks(measured: dict[str, Any]):
    for cell in measured["ttft"]["cells"]:
        parts = cell["parts"]
        assert min(parts[name]["allocate"] for name in ("strawman", "strawman_opt")) > 0
        assert (parts["flexserve"]["allocate"] == 0) == (cell["kept"] == 1.0)


def test_changing_hands_starting_a_job_and_keeping_tables_have_prices(measured: dict[str, Any]):
    seconds = measured["npu"]["seconds"]
    assert min(seconds.values()) > 0
    assert {name: len(found) for name, found in measured["npu"]["samples"].items()} == {
        **{"enter": 2, "leave": 2, "borrow": 2, "give_back": 2},
        **{"launch": 4, "launch_normal": 1, "commit": 1, "recall": 1},
    }


def test_the_npu_computes_prompts_and_changes_no_answer(measured: dict[str, Any]):
    (cell,) = measured["npu"]["prefill"]
    assert cell["npu_products"] > 0
    assert cell["same_answers"]
    assert min(cell["seconds"].values()) > 0


def test_both_worlds_use_the_npu(measured: dict[str, Any]):
    share = measured["npu"]["share"]
    assert min(share["per_second"].values()) > 0
    assert 0 <= share["secure_time"] <= 1
    assert share["prefill_kept"] > 0


def test_the_table_says_what_it_is(measured: dict[str, Any]):
    text = table(measured)
    for words in (
        "EMULATED",
        "11.3×",
        "9.1×",
        "97.2%",
        "10.05×",
        "24.30×",
        "order 9",
        "Reading:",
        "0.21 ms",
        "1.28 ms",
    ):
        assert words in text


# ---- figures, without a machine ---------------------------------------------------------------------


def sample(allocate: float, grant: float, take: float, free: float) -> Sample:
    return Sample(
        *(allocate, grant, take, free),
        unused_take=take / 2,
        unused_free=free / 2,
        orders=(0,) * 9 + (512,),
        moved=0,
    )


def test_the_monitors_part_is_counted_for_flexmem_alone_but_for_overwriting():
    flexmem: list[Sample | None] = [sample(1, 1, 1, 1)] * 3
    cma: list[Sample | None] = [sample(10, 99, 3, 3)] * 3
    cell = cell_of("k", 2 * MIB, {Allocator.FLEXMEM: flexmem, Allocator.CMA: cma})
    assert (cell["allocate_speedup"], cell["reclaim_speedup"], cell["scrubbed_speedup"]) == (5, 1.5, 3)


def test_what_was_refused_is_counted_and_not_compared():
    cell = cell_of("k", 2 * MIB, {Allocator.FLEXMEM: [sample(1, 1, 1, 1), None], Allocator.CMA: [None, None]})
    assert cell["refused"] == {"flexmem": 1, "cma": 2}
    assert "cma" not in cell
    assert "allocate_speedup" not in cell


def test_a_bar_is_held_against_the_worst_of_all_sizes():
    cells = [
        {"kernel": "no clearing, 4 KiB", "allocate_speedup": ratio, "reclaim_speedup": 5.0}
        for ratio in (9, 4.9)
    ]
    parts: dict[str, Any] = {name: {} for name in PARTS}
    npu = {"seconds": {"enter": 0.9e-3, "leave": 1.1e-3, "launch": 2e-3}, "share": {"kept": {"idle": 0.94}}}
    parts |= {"memory": {"cells": cells}, "calls": {"ns": {"grant 512": 79_999.0}}, "npu": npu}
    bars = report.assemble(plan.full(2), 3, parts)["bars"]
    assert [(bar["found"], bar["met"]) for bar in bars] == [
        *((4.9, False), (5.0, True), (79_999.0, True)),
        *((1.1e-3, False), (2e-3, True), (0.94, False)),
    ]


def test_of_shares_the_ratios_within_a_turn_count_and_of_answers_all():
    use = NpuUse(plan.quick(1), None, print)  # type: ignore[arg-type]  # no model is opened
    use.speeds |= {"alone": [100, 10, 50], "idle": [90, 10, 48], "busy": [50, 4, 30]}
    use.shares["secure_time"] = [0.4, 0.5, 0.6]
    use.prompts[128] = Prompt(
        {"cpu": [3.0, 2.0, 4.0], "npu": [1.0, 1.5, 2.0]}, [9, 9, 9], [True, False, True]
    )
    found = use.report()
    assert found["share"]["kept"] == {"idle": 0.96, "busy": 0.5}
    assert found["share"]["secure_time"] == 0.5
    (cell,) = found["prefill"]
    assert (cell["gain"], cell["npu_products"], cell["same_answers"]) == (2.0, 9, False)


@pytest.mark.parametrize("chosen", [plan.full(2), plan.quick(2)])
def test_plans_fit_their_machines(chosen: plan.Plan):
    left = chosen.ram_bytes * (100 - chosen.background) / 100
    for kernel in chosen.kernels:
        assert max(kernel.sizes) <= min(left * 0.75, chosen.area)


def test_the_command_measures_on_the_machine_and_prints_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    asked: list[plan.Plan] = []

    def measure(chosen: plan.Plan, folder: Path, say: object) -> dict[str, str]:
        asked.append(chosen)
        return {"folder": folder.name}

    monkeypatch.setattr(runner, "measure", measure)
    options = PaperOptions(
        tmp_path, platform="trustzone", secure_world="host", quick=True, threads=3, as_json=True
    )
    assert main.run(options) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": "trustzone"}
    assert asked == [plan.quick(3)]


def test_there_are_no_plots_of_a_secure_world_on_the_host(tmp_path: Path):
    plot = tmp_path / "plot.png"
    with pytest.raises(CallerError):
        main.run(PaperOptions(tmp_path, platform="trustzone", secure_world="host", plot=plot))
