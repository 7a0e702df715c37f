"""Synthetic LoRA adapters: changes of random factors to the matrices of a model of some shape."""

from __future__ import annotations

import zlib
from collections.abc import Collection
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from flexserve.harness.shapes import Shape

_ATTENTION = ("attn_q", "attn_output")
_SIGMA = 0.05  # of a factor's weights: their product changes an answer, and not beyond recognition


def write_adapter(
    path: Path, shape: Shape, *, rank: int = 4, seed: int = 0, changes: Collection[str] = _ATTENTION
) -> None:
    """Write an adapter for models of `shape`, which changes the matrices `changes` of each layer, to `path`.

    Raises KeyError for a matrix that is not known here, OSError as files do.
    """
    sizes = {
        "attn_q": (shape.width, shape.q_width),
        "attn_k": (shape.width, shape.kv_width),
        "attn_output": (shape.q_width, shape.width),
        "ffn_up": (shape.width, shape.ffn),
        "ffn_down": (shape.ffn, shape.width),
    }
    writer = gguf.GGUFWriter(path, shape.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0 * rank)
    for layer in range(shape.layers):
        for name in changes:
            inputs, outputs = sizes[name]
            weight = f"blk.{layer}.{name}.weight"
            writer.add_tensor(f"{weight}.lora_a", _factor(weight + "a", seed, rank, inputs))
            writer.add_tensor(f"{weight}.lora_b", _factor(weight + "b", seed, outputs, rank))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _factor(name: str, seed: int, rows: int, columns: int) -> NDArray[np.float32]:
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    return (_SIGMA * rng.standard_normal((rows, columns))).astype(np.float32)
