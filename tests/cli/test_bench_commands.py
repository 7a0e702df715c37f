"""synth and bench."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from servers import Cli

from flexserve.bench import main as bench_main
from flexserve.bench.main import BenchOptions
from flexserve.bench.paper import main as paper_main
from flexserve.bench.paper.main import PaperOptions


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[BenchOptions]:
    """The options of each measurement that was asked for; none is made."""
    options: list[BenchOptions] = []

    def run(given: BenchOptions) -> int:
        options.append(given)
        return 0

    monkeypatch.setattr(bench_main, "run", run)
    return options


def test_synth_writes_a_model_that_can_be_added(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "made.gguf"
    result = cli("synth", "--shape", "small-llama", "--quant", "q8_0", "-o", str(path))
    assert result.exit_code == 0
    assert result.stdout.startswith(f"wrote {path}: ")
    assert cli("add", str(path)).exit_code == 0


def test_synth_lists_the_shapes_it_has(cli: Cli, tmp_path: Path) -> None:
    result = cli("synth", "--shape", "round", "-o", str(tmp_path / "made.gguf"))
    assert result.exit_code == 1
    assert "tinyllama-1.1b" in result.stderr


@pytest.mark.parametrize("arguments", [(), ("--quant", "q2", "-o", "x")])
def test_synth_needs_a_place_and_a_quantization_it_has(cli: Cli, arguments: tuple[str, ...]) -> None:
    assert cli("synth", *arguments).exit_code == 2


def test_a_place_that_cannot_be_written_is_an_error(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = cli("synth", "--shape", "small-llama", "-o", str(tmp_path / "file" / "made.gguf"))
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr


def test_bench_passes_its_options_on(
    cli: Cli, measured: list[BenchOptions], gguf: Path, tmp_path: Path
) -> None:
    plot = tmp_path / "plot.svg"
    assert cli("bench", str(gguf), "--prompts", "8,16", "--runs", "2", "--plot", str(plot)).exit_code == 0
    (options,) = measured
    assert (options.model, options.runs, options.prompts) == (gguf, 2, (8, 16))
    assert (options.output, options.plot, options.memory) == ("md", plot, "secret")


def test_json_is_a_form_of_the_results(cli: Cli, measured: list[BenchOptions], gguf: Path) -> None:
    cli("bench", str(gguf), "--json")
    cli("bench", str(gguf), "-o", "csv")
    assert [options.output for options in measured] == ["json", "csv"]


@pytest.mark.parametrize("prompts", ["", "a", "8,,9", "0", "-1", "8;9"])
def test_lengths_that_are_none_are_misuse(
    cli: Cli, measured: list[BenchOptions], gguf: Path, prompts: str
) -> None:
    assert cli("bench", str(gguf), f"--prompts={prompts}").exit_code == 2
    assert measured == []


def test_a_missing_part_is_an_error_and_no_traceback(
    cli: Cli, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        sys.modules, "flexserve.bench.main", None
    )  # what importing it finds, then, is nothing
    result = cli("bench", str(gguf))
    assert result.exit_code == 1
    assert "error: This installation cannot measure" in result.stderr


@pytest.fixture
def papers(monkeypatch: pytest.MonkeyPatch) -> list[PaperOptions]:
    """The options of each comparison with the paper that was asked for; none is made."""
    options: list[PaperOptions] = []

    def run(given: PaperOptions) -> int:
        options.append(given)
        return 0

    monkeypatch.setattr(paper_main, "run", run)
    return options


def test_bench_paper_is_a_command_of_its_own(
    cli: Cli, measured: list[BenchOptions], papers: list[PaperOptions], tmp_path: Path
) -> None:
    plot = tmp_path / "paper.png"
    assert cli("bench", "paper", "--quick", "--platform", "sim", "--plot", str(plot), "--json").exit_code == 0
    (options,) = papers
    assert (options.quick, options.platform, options.plot, options.as_json) == (True, "sim", plot, True)
    assert measured == []


def test_a_file_named_paper_is_measured_by_its_path(
    cli: Cli, measured: list[BenchOptions], papers: list[PaperOptions], gguf: Path
) -> None:
    assert cli("bench", str(gguf)).exit_code == 0
    assert papers == []
    assert [options.model for options in measured] == [gguf]


def test_bench_paper_has_help_of_its_own(cli: Cli) -> None:
    result = cli("bench", "paper", "--help")
    assert result.exit_code == 0
    assert "--platform" in result.stdout
    assert "--runs" not in result.stdout


def test_tune_refuses_a_broken_log_with_the_number_of_the_line(cli: Cli, tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    log.write_text('{"event": "secure_world_ready"}\n{"event": "request"\n')
    result = cli("tune", str(log))
    assert result.exit_code == 1
    assert "Line 2 of serve.log cannot be used: it is not JSON." in result.stderr


def test_tune_says_which_log_cannot_be_read(cli: Cli, tmp_path: Path) -> None:
    result = cli("tune", str(tmp_path / "none.log"))
    assert result.exit_code == 1
    assert "none.log cannot be read" in result.stderr


def test_tune_searches_under_the_load_of_a_log(cli: Cli, gguf: Path, tmp_path: Path) -> None:
    assert cli("add", str(gguf), "--name", "small").exit_code == 0
    log = tmp_path / "serve.log"
    sizes = {"total": 8 << 30, "available": 5 << 30, "used": 0, "refaulted": 0}
    sample = {"event": "memory_sample", "timestamp": "2026-01-01T00:00:00Z", **sizes}
    counts = {"model": "small", "prompt_tokens": 9, "completion_tokens": 4, "ms": 5.0}
    request = {"event": "request", "timestamp": "2026-01-01T00:01:00Z", **counts}
    log.write_text(json.dumps(sample) + "\n" + json.dumps(request) + "\n")
    arguments = ("--trials", "1", "--workers", "1", "--json")
    result = cli("tune", str(log), *arguments)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["trials"][0]["requests"] == 1
    log.write_text(log.read_text() + json.dumps(request) + "\n")  # days later
    longer = cli("tune", str(log), *arguments)
    assert longer.exit_code == 0, longer.stderr
    assert json.loads(longer.stdout)["trials"][0]["requests"] == 2
