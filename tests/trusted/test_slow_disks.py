"""Making an image takes as long as the disk is slow; that is no engine that stands still."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from real_engine import RealEngine

pytestmark = pytest.mark.engine

MODEL = Path(__file__).parents[2] / "models/tiny/flexserve-tiny.gguf"
STEP = 60.0  # seconds that each read and write of the disk takes
PATIENCE = 600.0


def in_a_process(work: Callable[[Path], Any], folder: Path) -> Any:
    """Do `work` in a process of its own: llama.cpp's hooks are for good."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, folder).result()


def slow_opening(folder: Path) -> tuple[float, float]:
    """Open the model on a slow disk; return how long that took, and how long nothing moved in it at most."""
    from flexserve.serving.watchdog import Watchdog
    from flexserve.trusted.heartbeat import Heartbeat

    now, longest = 0.0, 0.0
    read, write = os.preadv, os.pwritev
    heart = Heartbeat(lambda: now)
    dog = Watchdog(
        *(lambda: heart.last, lambda _: None, lambda: None, lambda _: None), patience=1e9, clock=lambda: now
    )

    def takes_long(call: Callable[..., int]) -> Callable[..., int]:
        def slow(*arguments: Any) -> int:
            nonlocal now, longest
            now += STEP
            longest = max(longest, dog.still())
            return call(*arguments)

        return slow

    real = RealEngine(folder, heartbeat=heart)
    real.store.add(MODEL, MODEL.stem, lambda _done, _total: None)
    os.preadv, os.pwritev = takes_long(read), takes_long(write)
    try:
        with dog.turn():
            real.open(MODEL, 64)
    finally:
        os.preadv, os.pwritev = read, write
    return now, longest


def test_an_image_that_takes_hours_to_make_moves_at_every_piece(tmp_path: Path) -> None:
    took, longest = in_a_process(slow_opening, tmp_path)
    assert took > 5 * PATIENCE
    assert longest < PATIENCE / 2
