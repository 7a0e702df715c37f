"""What the matrix engine computes, C = A·Bᵀ, to the last bit whatever the host's CPU or library is.

Each format is defined so that the order in which a BLAS library sums up cannot matter: every sum that
is left to it is one of integers that the floating-point type in use has exactly.

An operand is prepared once from the bytes of its rows (decoded, widened) and then multiplied with many
others. A and B have one row for each row and column of C, as ggml has weights.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flexserve.platforms.trustzone.abi import NpuFormat

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Result = NDArray[Any]  # 32-bit elements

_Q8_BLOCK, _Q8_BYTES = 32, 34  # values, and bytes of an fp16 scale and as many int8
_TILE = 128, 256  # rows and columns whose sums stay in a core's cache
_GROUP = 4  # blocks of a tile at a time: longer calls, in which other threads need not wait for Python's lock


class Format(Protocol):
    """How rows lie in memory, and how they are multiplied. Without state: any thread may use it."""

    depth_step: int  # what a depth must be a multiple of
    widening: int  # bytes that a value takes when it is prepared, at most

    def row_bytes(self, depth: int) -> int:
        """Return the bytes of a row of `depth` values."""

    def prepare(self, rows: Bytes) -> Any:
        """Return the operand whose rows are those of `rows`, (rows, row_bytes)."""

    def product(self, a: Any, b: Any) -> Result:
        """Return A·Bᵀ of two prepared operands."""


class Int8:
    """int8 to int32, exact: |sum| ≤ 65536·2¹⁴ = 2³⁰.

    In float32, 2¹⁰ products of at most 2¹⁴ sum up exactly, since no partial sum is beyond 2²⁴.
    """

    depth_step, widening = 1, 4
    _RUN = 1024  # values

    def row_bytes(self, depth: int) -> int:
        """Return the bytes of a row of `depth` values."""
        return depth

    def prepare(self, rows: Bytes) -> Floats:
        """Return the values, (rows, depth)."""
        return rows.view(np.int8).astype(np.float32)

    def product(self, a: Floats, b: Floats) -> Result:
        """Return A·Bᵀ."""
        total = np.zeros((len(a), len(b)), np.int32)
        for at in range(0, a.shape[1], self._RUN):
            run = slice(at, at + self._RUN)
            total += (a[:, run] @ b[:, run].T).astype(np.int32)
        return total


_HALVES: Doubles = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)  # all fp16 values
_WHOLE = np.where(np.isfinite(_HALVES), _HALVES, 0) * 2.0**24  # … as integers, if finite
_HIGH = np.floor(_WHOLE * 2.0**-20)
_LOW = _WHOLE - _HIGH * 2.0**20


@dataclasses.dataclass(frozen=True, slots=True)
class _Split:
    """fp16 values as integers, value·2²⁴ = high·2²⁰ + low with |high| ≤ 2²⁰ and 0 ≤ low < 2²⁰."""

    parts: Doubles  # high's rows, then low's; 0 for what is not finite
    codes: NDArray[np.uint16]
    finite: bool


class Fp16:
    """fp16 to fp32: the exact sum of the exact products, rounded once, to nearest and to even.

    A finite fp16 value is a multiple of 2⁻²⁴ below 2¹⁶. As two integers of 20 bits it goes through
    float64, where 2¹³ products of 2⁴⁰ sum up exactly. Infinities and NaNs do as IEEE says; a NaN is quiet
    and positive.
    """

    depth_step, widening = 1, 18
    _RUN = 8192  # values

    def row_bytes(self, depth: int) -> int:
        """Return the bytes of a row of `depth` values."""
        return 2 * depth

    def prepare(self, rows: Bytes) -> _Split:
        """Return the values in two parts."""
        codes = rows.view(np.uint16)
        finite = not (codes & 0x7C00 == 0x7C00).any()
        return _Split(np.concatenate([_HIGH.take(codes), _LOW.take(codes)]), codes, finite)

    def product(self, a: _Split, b: _Split) -> Result:
        """Return A·Bᵀ."""
        rows, columns = len(a.codes), len(b.codes)
        sums = np.zeros((2 * rows, 2 * columns), np.int64)
        for at in range(0, a.codes.shape[1], self._RUN):
            run = slice(at, at + self._RUN)
            sums += (a.parts[:, run] @ b.parts[:, run].T).astype(np.int64)
        middle = sums[:rows, columns:] + sums[rows:, :columns]
        result = self._rounded(sums[:rows, :columns], middle, sums[rows:, columns:])
        if not (a.finite and b.finite):
            with np.errstate(all="ignore"):
                plain = _HALVES[a.codes] @ _HALVES[b.codes].T
            odd = ~np.isfinite(plain)
            result[odd] = plain[odd]
            result[np.isnan(result)] = np.nan
        return result

    def _rounded(self, high: NDArray[np.int64], middle: NDArray[np.int64], low: NDArray[np.int64]) -> Floats:
        """Return (high·2⁴⁰ + middle·2²⁰ + low)·2⁻⁴⁸ as float32, rounded once.

        What does not fit into an int64 is shifted to where it does, and what falls off is kept as a last
        bit that is odd: far below the 24 bits that stay, so that the rounding still knows about it.
        """
        middle = middle + (low >> 20)
        high = high + (middle >> 20)
        rest = (middle & 0xF_FFFF) << 20 | (low & 0xF_FFFF)
        result = self._odd(high, rest, 40)
        for dropped, most in ((20, 1 << 42), (0, 1 << 22)):
            result = np.where(np.abs(high) < most, self._odd(high, rest, dropped), result)
        return result

    @staticmethod
    def _odd(high: NDArray[np.int64], rest: NDArray[np.int64], dropped: int) -> Floats:
        whole = (high << 40 - dropped) + (rest >> dropped)
        lost = rest & ((1 << dropped) - 1)
        rounded: Floats = np.ldexp((whole | (lost != 0)).astype(np.float32), dropped - 48)
        return rounded


@dataclasses.dataclass(frozen=True, slots=True)
class _Blocks:
    """Rows of q8_0 blocks."""

    values: Floats  # (blocks, rows, 32)
    scales: Floats  # (blocks, rows)
    finite: bool


class Q8:
    """ggml's q8_0 to fp32, block by block of 32 values.

    The products of two blocks sum up exactly; that sum times (scale of A · scale of B, which float32 has
    exactly) is rounded to float32, and added to what the blocks before gave, in their order. A NaN is quiet
    and positive.
    """

    depth_step, widening = _Q8_BLOCK, 5

    def row_bytes(self, depth: int) -> int:
        """Return the bytes of a row of `depth` values."""
        return depth // _Q8_BLOCK * _Q8_BYTES

    def prepare(self, rows: Bytes) -> _Blocks:
        """Return values and scales."""
        blocks = rows.reshape(len(rows), -1, _Q8_BYTES)
        halves = blocks[..., :2].copy().view(np.float16)[..., 0]
        scales = np.ascontiguousarray(halves.T, np.float32)
        values = blocks[..., 2:].view(np.int8).astype(np.float32)
        return _Blocks(values.transpose(1, 0, 2), scales, bool(np.isfinite(scales).all()))

    def product(self, a: _Blocks, b: _Blocks) -> Result:
        """Return A·Bᵀ."""
        rows, columns = a.values.shape[1], b.values.shape[1]
        total = np.zeros((rows, columns), np.float32)
        with np.errstate(all="ignore"):
            for row in range(0, rows, _TILE[0]):
                for column in range(0, columns, _TILE[1]):
                    self._tile(total, a, b, slice(row, row + _TILE[0]), slice(column, column + _TILE[1]))
        if not (a.finite and b.finite):
            total[np.isnan(total)] = np.nan
        return total

    @staticmethod
    def _tile(total: Floats, a: _Blocks, b: _Blocks, rows: slice, columns: slice) -> None:
        left, right, into = a.values[:, rows], b.values[:, columns].transpose(0, 2, 1), total[rows, columns]
        dots = np.empty((_GROUP, *into.shape), np.float32)
        scales = np.empty_like(dots)
        for block in range(0, len(left), _GROUP):
            group = slice(block, block + _GROUP)
            count = len(left[group])
            np.matmul(left[group], right[group], out=dots[:count])
            np.multiply(a.scales[group, rows, None], b.scales[group, None, columns], out=scales[:count])
            np.multiply(dots, scales, out=dots)
            for each in dots[:count]:
                np.add(into, each, out=into)


FORMATS: dict[int, Format] = {NpuFormat.INT8: Int8(), NpuFormat.FP16: Fp16(), NpuFormat.Q8_0: Q8()}
