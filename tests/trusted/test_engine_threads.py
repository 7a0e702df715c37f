"""The engine's threads: how they wait for each other, and how many there are."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from real_engine import RealEngine

from flexserve.harness.shapes import SHAPES
from flexserve.harness.synth import write_synthetic

LOOK = (
    "import os, sys, flexserve.trusted.engine;print('llama_cpp' in sys.modules, os.environ['GOMP_SPINCOUNT'])"
)
PROMPT = [(7 * i) % 1000 + 10 for i in range(300)]  # long enough for threads to divide attention


def look(**environment: str) -> list[str]:
    kept = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    command = [sys.executable, "-c", LOOK]
    return subprocess.run(
        command, env=kept | environment, capture_output=True, text=True, check=True
    ).stdout.split()


def test_how_long_threads_spin_is_settled_before_the_library_is_loaded():
    loaded, rounds = look()
    assert loaded == "False"
    assert int(rounds) < 300_000


def test_whoever_starts_a_world_may_settle_it_differently():
    assert look(GOMP_SPINCOUNT="77")[1] == "77"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.gguf"
    write_synthetic(path, SHAPES["small-llama"], "q4_0")
    return path


def logits(model: Path, folder: Path, threads: int) -> NDArray[np.float32]:
    """Return the logits after each of some tokens, by as many threads at all times."""
    return _in_a_process(_fixed, model, folder, threads)


def _in_a_process(work, *arguments):
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _fixed(model: Path, folder: Path, threads: int) -> NDArray[np.float32]:
    os.environ["GOMP_SPINCOUNT"] = "100"  # the machine may be busy
    engine = RealEngine(folder, threads=threads)
    return _decode(engine.open(model, 1024)[1])


def _on_one_core(model: Path, folder: Path) -> tuple[NDArray[np.float32], bool]:
    """Return the same of two threads that adapt and share a core, and whether there was a single one."""
    os.environ["GOMP_SPINCOUNT"] = "100"
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    engine = RealEngine(folder, threads=2, adapt=True)
    context = engine.open(model, 1024)[1]
    counts = set()
    for _ in range(200):
        found = _decode(context)
        counts.add(engine.engine.team.count)
        if 1 in counts:
            return _decode(context), True
    return found, False


def _decode(context) -> NDArray[np.float32]:
    from flexserve.trusted.engine.context import Span

    context.prepare()
    context.take(0, keep=0)
    context.decode([Span(0, 0, PROMPT)])
    rows = []
    for position in range(len(PROMPT), len(PROMPT) + 20):
        context.decode([Span(0, position, [position])])
        rows.append(context.logits(0).copy())
    return np.array(rows)


def test_fewer_threads_compute_where_they_share_a_core_and_nothing_else_changes(model: Path, tmp_path: Path):
    always_two = logits(model, tmp_path / "two", 2)
    assert (logits(model, tmp_path / "one", 1) != always_two).any(), (
        "llama.cpp's rounding has no part in this"
    )
    adapted, reduced = _in_a_process(_on_one_core, model, tmp_path / "shared")
    assert reduced
    assert (adapted == always_two).all()
