"""Plots are an extra: without it a benchmark says so before it measures anything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flexserve.bench import main as bench
from flexserve.bench.paper import main as paper
from flexserve.errors import CallerError


@pytest.fixture(autouse=True)
def _without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def test_a_plot_without_the_extra_names_it_at_once(tmp_path: Path) -> None:
    with pytest.raises(CallerError, match="matplotlib") as caught:
        bench.run(bench.BenchOptions(tmp_path / "no.gguf", plot=tmp_path / "plot.png"))
    assert "flexserve[bench]" in caught.value.hint


def test_so_does_the_papers_benchmark(tmp_path: Path) -> None:
    with pytest.raises(CallerError, match="matplotlib"):
        paper.run(paper.PaperOptions(tmp_path, plot=tmp_path / "plot.png"))
