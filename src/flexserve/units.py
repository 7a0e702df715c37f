"""Sizes and durations as people write them."""

from __future__ import annotations

import re

from flexserve.errors import CallerError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_FACTORS = {"": 1, "b": 1, "k": KIB, "m": MIB, "g": GIB, "t": GIB << 10}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", re.IGNORECASE)
_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|)\s*", re.ASCII)


def parse_size(text: str) -> int:
    """Return the bytes that `text` ("512M", "1.5 GiB", "4096") stands for; units are binary.

    Raises CallerError when it is not a size.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise CallerError(f"{text!r} is not a size.", hint="Write it like 512M, 1.5GiB or 4096.")
    return int(float(match[1]) * _FACTORS[match[2].lower()])


def parse_duration(text: str) -> float:
    """Return the seconds that "10m", "90s", "500ms", "300" or "-1" (for ever) stand for.

    Raises ValueError when it is none of these.
    """
    if text.strip() == "-1":
        return -1.0
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError("Write it like 10m, 90s, 0 or -1 (never)")
    return float(match[1]) * _SECONDS[match[2]]


def format_size(size: int) -> str:
    """Return `size` bytes in the largest binary unit that keeps it at or above one."""
    for factor, unit in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= factor:
            value = size / factor
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return f"{size} B"


def format_duration(seconds: float) -> str:
    """Return `seconds` in the largest unit of time that keeps it at or above one: "4 min"."""
    for factor, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= factor:
            return f"{seconds / factor:.0f} {unit}"
    return f"{seconds:.0f} s"


def align_up(value: int, step: int) -> int:
    """Return the smallest multiple of `step` that is at least `value`."""
    return -(-value // step) * step


def align_down(value: int, step: int) -> int:
    """Return the largest multiple of `step` that is at most `value`."""
    return value // step * step
