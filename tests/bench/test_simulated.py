"""The simulated experiments: they repeat, they keep the paper's order, and they reach its figures."""

from __future__ import annotations

import json

import pytest

from flexserve.bench.paper import long_simulation, simulated
from flexserve.bench.paper.long_simulation import Workload


@pytest.fixture(scope="module")
def report():
    return simulated.run()


def test_the_report_is_plain_json_and_says_that_it_is_simulated(report):
    assert json.loads(json.dumps(report)) == report
    assert report["platform"] == "sim"


def test_mean_speedups_over_all_pressures_reach_the_papers(report):
    assert report["ttft"]["speedup_over_strawman_mean"] >= 10.05
    assert report["ttft"]["speedup_over_strawman_opt_mean"] >= 2.44


def test_in_the_papers_own_setting_the_model_is_near_its_figures(report):
    for name in ("speedup_over_strawman_mean", "speedup_over_strawman_opt_mean"):
        assert report["cold"][name] == pytest.approx(report["cold"]["paper"][name], rel=0.2)


def test_agent_workflows_reach_the_papers_best(report):
    assert report["workflow"]["speedup_over_strawman_max"] >= 24.30
    assert report["workflow"]["speedup_over_strawman_opt_max"] >= 4.05


def test_the_pipeline_is_within_a_tenth_of_its_bound_at_every_recalled_fraction(report):
    assert 1.0 <= report["pipeline"]["over_bound_max"] <= 1.10
    assert {cell["recalled"] for cell in report["pipeline"]["cells"]} == {0, 25, 50, 75, 100}


def test_systems_stand_in_the_papers_order_in_every_cell(report):
    for cell in report["ttft"]["cells"] + report["cold"]["cells"]:
        seconds = cell["seconds"]
        assert seconds["nw_base"] <= seconds["flexserve"] < seconds["strawman_opt"] < seconds["strawman"]


def test_more_pressure_never_keeps_more_nor_answers_sooner(report):
    cells = {(c["model"], c["prompt"], c["pressure"]): c for c in report["ttft"]["cells"]}
    for model, prompt, _ in cells:
        row = [cells[model, prompt, level] for level in ("none", "some", "much", "all")]
        kept = [cell["kept"]["flexserve"] for cell in row]
        assert kept == sorted(kept, reverse=True)
        assert kept[-1] == 0.0
        seconds = [round(cell["seconds"]["flexserve"], 6) for cell in row]
        assert seconds == sorted(seconds)


def test_the_secure_npu_gains_nearly_what_the_bare_one_does(report):
    cells = report["npu"]["cells"]
    bare = report["npu"]["mode_switch_seconds"] * 2 + report["npu"]["task_launch_seconds"]
    for cell in cells:
        seconds = cell["seconds"]
        assert seconds["npu"] * cell["protection_part"] == pytest.approx(bare)
        assert 12 < cell["gain"] < 12.5  # without protection: 12.5
        assert 1 < cell["cold_gain"] <= cell["gain"] * 1.01
        assert seconds["npu"] < seconds["whole_driver"] < seconds["cpu"]


def test_summaries_are_those_of_their_cells(report):
    cells = report["workflow"]["cells"]
    best = max(cell["speedup_over_strawman"] for cell in cells)
    assert report["workflow"]["speedup_over_strawman_max"] == best
    for cell in cells:
        ratio = cell["seconds"]["strawman"] / cell["seconds"]["flexserve"]
        assert cell["speedup_over_strawman"] == pytest.approx(ratio)


def test_the_table_puts_the_papers_figures_beside_the_models(report):
    lines = simulated.table(report).splitlines()
    row = next(line for line in lines if line.startswith("| TTFT over Strawman-OPT, mean, cold "))
    ours = f"{report['cold']['speedup_over_strawman_opt_mean']:.2f}×"
    assert [cell.strip() for cell in row.split("|")[2:4]] == ["2.44×", ours]
    assert any(line.startswith("- Over Strawman, cold") for line in lines)


def test_the_same_seed_gives_the_same_hours_and_another_seed_others():
    assert Workload(1).run(20.0) == Workload(1).run(20.0)
    assert Workload(1).run(20.0) != Workload(2).run(20.0)


def test_hours_of_random_requests_and_recalls_lose_no_memory(capsys):
    assert long_simulation.main(["--hours", "50", "--seed", "3"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("50 simulated hours")
    assert said.endswith("memory conserved\n")
