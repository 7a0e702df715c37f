"""The NPU's arithmetic, against products written out number by number."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest
from by_hand import FP16, INT8, Q8, any_half, by_hand, by_hand_fp16, row, tame_half
from hypothesis import given, settings
from hypothesis import strategies as st

from flexserve.emulator.npu.arithmetic import FORMATS

_SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 70))


def device_says(form: int, a: list[bytes], b: list[bytes]) -> bytes:
    arithmetic = FORMATS[form]
    operands = [
        arithmetic.prepare(np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)) for rows in (a, b)
    ]
    return bytes(arithmetic.product(*operands).tobytes())


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from([INT8, FP16, Q8]), shape=_SHAPES, seed=st.integers(0, 1 << 32), tame=st.booleans()
)
def test_every_bit_of_a_product_is_as_by_hand(
    form: int, shape: tuple[int, int, int], seed: int, tame: bool
) -> None:
    m, n, k = shape
    rng = random.Random(seed)
    half = tame_half if tame else any_half
    depth = k if form != Q8 else k // 8 + 1
    a = [row(form, depth, rng, half) for _ in range(m)]
    b = [row(form, depth, rng, half) for _ in range(n)]
    assert device_says(form, a, b) == by_hand(form, a, b)


@pytest.mark.parametrize("form", [INT8, FP16, Q8])
@pytest.mark.parametrize("shape", [(130, 3, 2), (2, 260, 3), (1, 1, 2049), (3, 2, 8200)])
def test_every_bit_is_right_where_tiles_and_runs_end(form: int, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    rng = random.Random(m * n * k)
    depth = k if form != Q8 else k // 32 + 1
    a = [row(form, depth, rng, tame_half) for _ in range(m)]
    b = [row(form, depth, rng, tame_half) for _ in range(n)]
    assert device_says(form, a, b) == by_hand(form, a, b)


def test_the_largest_int8_sums_are_exact() -> None:
    rows = [bytes([0x80]) * 65536]
    assert struct.unpack("<i", device_says(INT8, rows, rows)) == (1 << 30,)
    assert struct.unpack("<i", device_says(INT8, rows, [bytes([0x7F]) * 65536])) == (-128 * 127 * 65536,)
    rows = [bytes([0x7F]) * 65535]
    assert struct.unpack("<i", device_says(INT8, rows, rows)) == (127 * 127 * 65535,)


@pytest.mark.parametrize("size", [12, 15, 34])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("tail", [0, 1, -1])
@pytest.mark.parametrize("odd", [0, 1])
def test_fp16_sums_round_once_even_half_way_between_two_floats(
    size: int, sign: int, tail: int, odd: int
) -> None:
    # 2^size + odd·ulp + ulp/2 is half way between two floats; 2⁻⁴⁸ more or less decides.
    terms = [(2.0 ** (size - size // 2 - 2), 2.0 ** (size // 2 - 2))] * 16  # 2^size in all
    half = size - 24
    terms += [(odd * 2.0 ** (half // 2 + 1), 2.0 ** (half - half // 2))]
    terms += [(2.0 ** (half // 2), 2.0 ** (half - half // 2)), (tail * 2.0**-24, 2.0**-24)]
    a = struct.pack(f"<{len(terms)}e", *[sign * x for x, _ in terms])
    b = struct.pack(f"<{len(terms)}e", *[y for _, y in terms])
    assert device_says(FP16, [a], [b]) == by_hand_fp16(a, b)


def test_the_largest_fp16_sums_cancel_to_the_smallest() -> None:
    depth = 65536
    most, least = struct.pack("<e", 65504.0), struct.pack("<e", 2.0**-24)
    minus = struct.pack("<e", -65504.0)
    a = most * (depth - 1) + least
    b = (most + minus) * (depth // 2 - 1) + struct.pack("<e", 0.0) + least
    assert device_says(FP16, [a], [b]) == struct.pack("<f", 2.0**-48)
    assert device_says(FP16, [most * depth], [most * depth]) == by_hand_fp16(most * depth, most * depth)


def test_a_small_fp16_product_is_not_lost_among_large_ones_that_cancel() -> None:
    small, most, minus = struct.pack("<e", 1 / 16), struct.pack("<e", 65504.0), struct.pack("<e", -65504.0)
    a, b = small + most * 65534, small + most * 32767 + minus * 32767
    assert device_says(FP16, [a], [b]) == struct.pack("<f", 1 / 256)
