"""Opening a model: llama.cpp reads none of its weights, and each tensor is as its file says afterwards."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from real_engine import RealEngine

from flexserve.harness.shapes import SHAPES
from flexserve.harness.synth import write_synthetic

pytestmark = pytest.mark.engine


def _open_twice(folder: Path) -> tuple[int, int, list[tuple[int, int]]]:
    """Return the bytes of weights, those that opening read, and of each tensor its bytes now and stored."""
    path = folder / "medium.gguf"
    write_synthetic(path, SHAPES["medium-llama"], "q4_0")
    real = RealEngine(folder)
    model, context = real.open(path, 64)  # which makes the image
    context.close()
    model.close()
    before = _bytes_read()
    model, context = real.open(path, 64)
    read = _bytes_read() - before
    sizes = {info.name: info.size for info in model.header.tensors}
    tensors = [
        (real.engine.ggml.bytes_of(placed.tensor), sizes[placed.name]) for placed in model._files[0].tensors
    ]
    context.close()
    model.close()
    return model.weights.size, read, tensors


def _bytes_read() -> int:
    """Return the bytes that this process has read by system calls, of whatever file."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def test_weights_are_not_read_and_tensors_have_all_their_elements_again(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        weights, read, tensors = pool.submit(_open_twice, tmp_path).result()
    assert read < weights / 4  # the header, and what else is in its chunk
    assert tensors
    assert all(now == stored for now, stored in tensors)
