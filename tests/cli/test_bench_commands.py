"""synth and bench."""

from __future__ import annotations

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
