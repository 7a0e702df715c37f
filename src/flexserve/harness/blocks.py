"""Random weights, made directly in the quantized formats of ggml: gigabytes take seconds.

Every format here stores a row in blocks of integers with a scale. Filling the integers with random
bits gives evenly distributed weights; the scale sets their standard deviation. A scale's sign is
random too, for the integers are not centred on zero (four bits span -8…7), and the rest, alike in
every weight, would outweigh all the randomness in a wide matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

Bytes = npt.NDArray[np.uint8]

_SUPER_BLOCK = 256  # weights in a block of the k-quants

# Standard deviations of evenly distributed integers.
_SIGMA_4_BITS = math.sqrt((16**2 - 1) / 12)
_SIGMA_6_BITS = math.sqrt((64**2 - 1) / 12)
_SIGMA_8_BITS = math.sqrt((256**2 - 1) / 12)

# Q4_K: weight = d · scale · q - dmin · minimum. With scale 32, minimum 60 and dmin = 4 d, the
# minimum is exactly the mean of the first term (q averages 7.5). Both six-bit numbers, the same in
# all eight groups of a block, packed as ggml packs them:
_Q4_K_SCALE, _Q4_K_MIN_TO_D = 32, 4
_Q4_K_PACKED = bytes([0xA0] * 4 + [0xFC] * 4 + [0xC0] * 4)
_Q6_K_SCALE = 32


def random_weights(
    rng: np.random.Generator, rows: int, columns: int, kind: GGMLQuantizationType, sigma: float
) -> Bytes:
    """Return `rows` encoded rows of `columns` weights with mean 0 and standard deviation `sigma`.

    The result has shape (rows, bytes of a row). Raises KeyError for a kind that has no maker here,
    ValueError when the columns are not whole blocks of it.
    """
    maker, block = _MAKERS[kind]
    if columns % block:
        raise ValueError(f"{columns} columns are not whole blocks of {block} ({kind.name})")
    return maker(rng, rows * columns // block, sigma).reshape(rows, -1)


def fits(columns: int, kind: GGMLQuantizationType) -> bool:
    """Return whether rows of `columns` weights are whole blocks of `kind`."""
    return columns % _MAKERS[kind][1] == 0


def _bits(rng: np.random.Generator, count: int, size: int) -> Bytes:
    words = rng.bit_generator.random_raw(-(-count * size // 8))
    return np.asarray(words, dtype=np.uint64).view(np.uint8)[: count * size].reshape(count, size)


def _half(values: npt.ArrayLike) -> Bytes:
    """Return float16 numbers as bytes, one row each."""
    return np.asarray(values, dtype="<f2").reshape(-1, 1).view(np.uint8)


def _signed(rng: np.random.Generator, count: int, value: float) -> npt.NDArray[np.float32]:
    signs = _bits(rng, count, 1)[:, 0] & 1
    return np.where(signs, np.float32(value), np.float32(-value))


def _q4_0(rng: np.random.Generator, blocks: int, sigma: float) -> Bytes:
    scales = _signed(rng, blocks, sigma / _SIGMA_4_BITS)
    return np.concatenate([_half(scales), _bits(rng, blocks, 16)], axis=1)


def _q8_0(rng: np.random.Generator, blocks: int, sigma: float) -> Bytes:
    scales = _signed(rng, blocks, sigma / _SIGMA_8_BITS)
    return np.concatenate([_half(scales), _bits(rng, blocks, 32)], axis=1)


def _q4_k(rng: np.random.Generator, blocks: int, sigma: float) -> Bytes:
    scales = _signed(rng, blocks, sigma / (_SIGMA_4_BITS * _Q4_K_SCALE))
    packed = np.broadcast_to(np.frombuffer(_Q4_K_PACKED, np.uint8), (blocks, len(_Q4_K_PACKED)))
    return np.concatenate(
        [_half(scales), _half(scales * _Q4_K_MIN_TO_D), packed, _bits(rng, blocks, 128)], axis=1
    )


def _q6_k(rng: np.random.Generator, blocks: int, sigma: float) -> Bytes:
    group_scales = _signed(rng, blocks * 16, _Q6_K_SCALE).astype(np.int8).view(np.uint8).reshape(blocks, 16)
    scale = _half(np.full(blocks, sigma / (_SIGMA_6_BITS * _Q6_K_SCALE)))
    return np.concatenate([_bits(rng, blocks, 128 + 64), group_scales, scale], axis=1)


def _f16(rng: np.random.Generator, count: int, sigma: float) -> Bytes:
    # Random sign and mantissa under one exponent: evenly distributed over ±[a, 2a), whose root mean
    # square is a·√(7/3). The exponent is the power of two nearest to that.
    exponent = round(math.log2(sigma / math.sqrt(7 / 3))) + 15
    words = _bits(rng, count, 2).view("<u2")
    return ((words & 0x83FF) | (exponent << 10)).astype("<u2").view(np.uint8)


_MAKERS: dict[GGMLQuantizationType, tuple[Callable[[np.random.Generator, int, float], Bytes], int]] = {
    GGMLQuantizationType.F16: (_f16, 1),
    GGMLQuantizationType.Q4_0: (_q4_0, 32),
    GGMLQuantizationType.Q8_0: (_q8_0, 32),
    GGMLQuantizationType.Q4_K: (_q4_k, _SUPER_BLOCK),
    GGMLQuantizationType.Q6_K: (_q6_k, _SUPER_BLOCK),
}
