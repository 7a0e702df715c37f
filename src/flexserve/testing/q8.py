"""Products of q8_0 matrices by the book: ggml's block format, and what the NPU's one operation is."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

BLOCK = 32  # values
BLOCK_BYTES = 2 + BLOCK  # an fp16 scale, then one int8 a value

Floats = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class Q8Matrix:
    """`scales` is (rows, blocks), `values` (rows, blocks, 32)."""

    scales: NDArray[np.float16]
    values: NDArray[np.int8]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.values.shape[0], self.values.shape[1] * BLOCK


def read(data: memoryview, rows: int, depth: int, stride: int) -> Q8Matrix:
    """Return the matrix whose rows lie `stride` bytes apart in `data`. Copies."""
    raw = np.frombuffer(data, np.uint8)
    blocks = np.lib.stride_tricks.as_strided(
        raw, (rows, depth // BLOCK, BLOCK_BYTES), (stride, BLOCK_BYTES, 1)
    ).copy()
    return Q8Matrix(blocks[..., :2].copy().view(np.float16)[..., 0], blocks[..., 2:].view(np.int8))


def pack(matrix: Q8Matrix) -> bytes:
    """Return the rows of `matrix`, one behind the other."""
    scales = matrix.scales[..., None].view(np.uint8)
    return np.concatenate([scales, matrix.values.view(np.uint8)], axis=-1).tobytes()


def random_matrix(rng: np.random.Generator, rows: int, depth: int) -> Q8Matrix:
    """Return one of usual magnitudes."""
    shape = (rows, depth // BLOCK)
    values = rng.integers(-127, 128, (*shape, BLOCK), np.int8)
    return Q8Matrix(rng.uniform(1e-3, 1e-2, shape).astype(np.float16), values)


def multiply(a: Q8Matrix, b: Q8Matrix) -> Floats:
    """Return A·Bᵀ, (rows of A, rows of B): block by block, each exact, summed up in float32."""
    total = np.zeros((a.shape[0], b.shape[0]), np.float32)
    for block in range(a.values.shape[1]):
        # 32 products of two int8 are below 2^24: float32 has them exactly.
        dot = a.values[:, block].astype(np.float32) @ b.values[:, block].astype(np.float32).T
        total += dot * np.outer(a.scales[:, block].astype(np.float32), b.scales[:, block].astype(np.float32))
    return total
