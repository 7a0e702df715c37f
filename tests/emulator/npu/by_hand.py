"""Products written out number by number, and rows to multiply."""

from __future__ import annotations

import math
import random
import struct
from fractions import Fraction

import numpy as np

INT8, FP16, Q8 = 1, 2, 3  # formats


def nearest(value: Fraction) -> bytes:
    """The float32 nearest to `value`; of two, the even one."""
    if value == 0:
        return struct.pack("<f", 0.0)
    exponent = math.floor(math.log2(abs(value))) - 24
    while abs(value) >= Fraction(2) ** (exponent + 24):
        exponent += 1
    while abs(value) < Fraction(2) ** (exponent + 23):
        exponent -= 1
    digits = round(value / Fraction(2) ** exponent)  # Python rounds to even
    return struct.pack("<f", math.ldexp(digits, exponent))


def by_hand_int8(a: bytes, b: bytes) -> bytes:
    left, right = struct.unpack(f"{len(a)}b", a), struct.unpack(f"{len(b)}b", b)
    return struct.pack("<i", sum(x * y for x, y in zip(left, right, strict=True)))


def by_hand_fp16(a: bytes, b: bytes) -> bytes:
    left, right = struct.unpack(f"<{len(a) // 2}e", a), struct.unpack(f"<{len(b) // 2}e", b)
    products = [x * y for x, y in zip(left, right, strict=True)]
    if not all(map(math.isfinite, products)):
        total = sum(products)
        return struct.pack("<I", 0x7FC0_0000) if math.isnan(total) else struct.pack("<f", total)
    return nearest(sum(map(Fraction, products), Fraction(0)))


def by_hand_q8(a: bytes, b: bytes) -> bytes:
    total = np.float32(0)
    with np.errstate(all="ignore"):
        for at in range(0, len(a), 34):
            scale_a, *left = struct.unpack_from("<e32b", a, at)
            scale_b, *right = struct.unpack_from("<e32b", b, at)
            dot = np.float32(sum(x * y for x, y in zip(left, right, strict=True)))
            total = np.float32(
                total + np.float32(dot * np.float32(np.float32(scale_a) * np.float32(scale_b)))
            )
    return struct.pack("<I", 0x7FC0_0000) if np.isnan(total) else total.tobytes()


BY_HAND = {INT8: by_hand_int8, FP16: by_hand_fp16, Q8: by_hand_q8}


def by_hand(form: int, a: list[bytes], b: list[bytes]) -> bytes:
    return b"".join(BY_HAND[form](left, right) for left in a for right in b)


def any_half(rng: random.Random) -> bytes:
    return struct.pack("<H", rng.getrandbits(16))


def tame_half(rng: random.Random) -> bytes:
    return struct.pack("<e", rng.gauss(0, 1))


def row(form: int, depth: int, rng: random.Random, half: object = any_half) -> bytes:
    assert callable(half)
    if form == INT8:
        return rng.randbytes(depth)
    if form == FP16:
        return b"".join(half(rng) for _ in range(depth))
    return b"".join(half(rng) + rng.randbytes(32) for _ in range(depth))
