"""`flexserve bench paper`: every measured_system is in every cell, and the figures follow from the cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flexserve.bench.paper import plots, runner
from flexserve.bench.paper.models import Models
from flexserve.bench.paper.plan import Plan, System, Workflow, full, quick
from flexserve.bench.paper.reasons import reasons
from flexserve.bench.paper.samples import PARTS, Cells, Request, Samples
from flexserve.bench.paper.table import markdown, table
from flexserve.errors import CallerError
from flexserve.protocol.answers import Timings

pytestmark = pytest.mark.engine

PLAN = Plan(
    shapes=("small-llama", "small-qwen2"),
    prompts=(8,),
    kept=(1.0, 0.0),
    workflows=(
        Workflow("loop", (0, 1), hints=True),
        Workflow("pressed", (1, 0, 1), kept=0.4),
        Workflow("capped", (1, 0, 1), cap=0.7, pressed=0.3, prompt=16, tokens=1),
    ),
    rounds=1,
    threads=1,
    memory="plain",
    call_prompt=8,
    call_tokens=3,
    decode_prompt=16,
    decode_tokens=4,
    pipeline_prompts=(8,),
    recalled=(100,),
    context=256,
    chunk=65536,
)
NAMES = {system.value for system in System}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("paper")


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    measured = runner.measure(PLAN, folder, lambda _what: None)
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(measured))
    # As the command adds it.
    return measured | {"normal_world": {"kept_fraction": 0.97, "paper": {"kept_fraction": 0.972}}}


def test_every_cell_has_every_measured_system(report: dict[str, Any]):
    cells = report["ttft"]["cells"]
    expected = {(s, p, k) for s in PLAN.shapes for p in PLAN.prompts for k in PLAN.kept}
    assert {(cell["model"], cell["prompt"], cell["kept"]) for cell in cells} == expected
    assert all(set(cell["seconds"]) == NAMES for cell in cells)
    assert [cell["workflow"] for cell in report["workflow"]["cells"]] == ["loop", "pressed", "capped"]
    assert all(set(cell["seconds"]) == NAMES for cell in report["workflow"]["cells"])


def test_each_measured_system_keeps_what_it_is_meant_to_keep(report: dict[str, Any]):
    for cell in report["ttft"]["cells"]:
        parts = cell["parts"]
        for strawman in ("strawman", "strawman_opt"):
            assert min(parts[strawman][part] for part in ("allocate", "load", "decrypt")) > 0
        assert parts["nw_base"]["decrypt"] == 0
        assert (parts["flexserve"]["decrypt"] == 0) == (cell["kept"] == 1.0)


def test_the_figures_are_those_of_the_cells(report: dict[str, Any]):
    cells = report["ttft"]["cells"]
    for cell in cells:
        ratio = cell["seconds"]["strawman"] / cell["seconds"]["flexserve"]
        assert cell["speedup_over_strawman"] == pytest.approx(ratio)
    mean = sum(cell["speedup_over_strawman"] for cell in cells) / len(cells)
    assert report["ttft"]["speedup_over_strawman_mean"] == pytest.approx(mean)
    assert report["ttft"]["paper"]["speedup_over_strawman_mean"] == 10.05
    flows = [cell["speedup_over_strawman_opt"] for cell in report["workflow"]["cells"]]
    assert report["workflow"]["speedup_over_strawman_opt_max"] == max(flows)
    bounds = [cell["over_bound"] for cell in report["pipeline"]["cells"]]
    assert report["pipeline"]["over_bound_max"] == max(bounds)


def test_the_report_is_json_with_the_documented_keys(report: dict[str, Any]):
    read = json.loads(json.dumps(report))
    for path in (
        "ttft.speedup_over_strawman_mean",
        "ttft.speedup_over_strawman_opt_mean",
        "workflow.speedup_over_strawman_max",
        "workflow.speedup_over_strawman_opt_max",
        "pipeline.over_bound_max",
        "normal_world.kept_fraction",
    ):
        part, key = path.split(".")
        assert read[part][key] > 0
        assert read[part]["paper"][key] > 0


def test_a_run_that_was_stopped_goes_on_after_its_last_whole_round(report: dict[str, Any], folder: Path):
    said: list[str] = []
    again = runner.measure(PLAN, folder, said.append, resume=True)
    assert again | {"normal_world": report["normal_world"]} == report
    assert not [words for words in said if words.startswith("round")]


def test_a_run_that_was_not_begun_begins_and_one_of_another_plan_is_not_gone_on_with(tmp_path: Path):
    file = tmp_path / "samples.json"
    assert Samples.of(PLAN, file, resume=True) == Samples(PLAN)
    for damaged in (b"", b"{}", msgspec.json.encode(Samples(full(2, "plain")))):
        file.write_bytes(damaged)
        with pytest.raises(CallerError, match="another plan"):
            Samples.of(PLAN, file, resume=True)
    assert Samples.of(PLAN, file, resume=False) == Samples(PLAN)


def test_the_table_has_the_papers_numbers_beside_ours(report: dict[str, Any]):
    text = table(report)
    for words in ("10.05×", "24.30×", "97.2%", "small-qwen2", "UNPROTECTED", "Reading:", "capped, "):
        assert words in text


def test_an_application_that_was_not_measured_is_said_to_be_so(report: dict[str, Any]):
    other = report | {"normal_world": {"kept_fraction": None, "paper": {"kept_fraction": 0.972}}}
    assert "not measured" in table(other)


def test_plots_are_drawn_as_png_and_as_svg(report: dict[str, Any], tmp_path: Path):
    files = plots.plot(report, tmp_path / "paper.png")
    assert [file.name for file in files] == ["paper.png", "paper.svg"]
    assert all(file.stat().st_size > 10_000 for file in files)


def test_models_are_made_once(report: dict[str, Any], tmp_path: Path):
    plan = Plan(("small-llama",), (8,), (1.0,), (), 1, 1, "plain", call_prompt=8, decode_prompt=8)
    said: list[str] = []
    models = Models(tmp_path, said.append)
    first = models.make(plan.shapes[0], "q4_0", [8, 12], 1)
    assert Models(tmp_path, said.append).make(plan.shapes[0], "q4_0", [8], 1) == first
    assert len(said) == 1
    assert not list(tmp_path.glob("*.gguf"))


def test_what_a_request_waited_is_not_counted_as_hidden():
    timings = Timings(restore=300, allocate=800, load=100, decrypt=100, prefill=50, ttft=400)
    request = Request.of(timings, threads=2)
    assert request.ttft == pytest.approx(0.4)
    assert request.parts == pytest.approx(dict(zip(PARTS, (0.4, 0.05, 0.05, 0.05, 0.3, 0.2), strict=True)))


def test_speedups_are_taken_within_a_round():
    cell = Cells().at(model="m")
    for ours, theirs in ((1.0, 4.0), (10.0, 30.0), (1.0, 2.0)):
        cell.add(System.FLEXSERVE, Request(ours, {}))
        cell.add(System.STRAWMAN, Request(theirs, {}))
    assert cell.speedup(System.STRAWMAN) == 3.0
    assert cell.seconds(System.STRAWMAN) == 4.0


@pytest.mark.parametrize("plan", [full(2, "secret"), quick(2, "secret")])
def test_plans_name_models_and_prompts_that_there_are(plan: Plan):
    for workflow in plan.workflows:
        assert set(workflow.calls) <= set(range(len(plan.shapes)))
    assert max(plan.lengths) + plan.decode_tokens < plan.context


def test_a_table_is_aligned():
    assert markdown([("a", "b"), ("long", "c")]) == "| a    | b |\n|------|---|\n| long | c |"


def test_the_reason_of_a_ratio_names_what_each_system_waits_for_and_what_no_system_can_beat():
    def parts(**given: float) -> dict[str, float]:
        return dict.fromkeys((*PARTS, "decode"), 0.0) | given

    cell = {
        "workflow": "loop",
        "seconds": {"flexserve": 2.0, "strawman": 8.0, "strawman_opt": 6.0},
        "speedup_over_strawman": 4.0,
        "speedup_over_strawman_opt": 3.0,
        "parts": {
            "flexserve": parts(compute=0.5, decode=0.5, waited=0.8),
            "strawman": parts(compute=1.0, decode=1.0, waited=6.0, allocate=4.0, load=1.5, decrypt=0.5),
            "strawman_opt": parts(compute=1.0, decode=1.0, waited=3.0, allocate=4.0),
        },
    }
    first, second = reasons([cell], "workflow")
    assert first == (
        "loop, 4.00× Strawman: it stands still for memory for 75% of 8.00 s (67% getting it, 25% reading it, "
        "8% decrypting it); FlexServe for 40% of 2.00 s, 10% more go to giving memory back and to switching. "
        "Computing alone takes 1.00 s, so no system can be more than 8.00× as fast."
    )
    assert second.startswith("loop, 3.00× Strawman-OPT: it stands still for memory for 50% of 6.00 s")
