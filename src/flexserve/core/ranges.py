"""Ranges of integers as expressions of a grammar, digit by digit."""

from __future__ import annotations

from collections.abc import Iterator

MAX_DIGITS = 16  # of an integer that has no bound


def integer_between(low: int | None, high: int | None) -> str | None:
    """Return the expression for integers from `low` to `high`, both included; None: there is none.

    Without a bound an integer has MAX_DIGITS at most; bounds have no more either.
    """
    most = 10**MAX_DIGITS - 1
    low, high = -most if low is None else low, most if high is None else high
    if low > high or max(abs(low), abs(high)) > most:
        return None
    ways = [f'"-" {pattern}' for pattern in _patterns(max(1, -high), -low)]
    ways += _patterns(max(0, low), high)
    return " | ".join(ways)


def _patterns(low: int, high: int) -> Iterator[str]:
    """Yield expressions that together are the numbers from `low` (0 or more) to `high`."""
    for digits in range(len(str(low)), len(str(max(high, 0))) + 1):
        first = max(low, 10 ** (digits - 1) if digits > 1 else 0)
        last = min(high, 10**digits - 1)
        if first <= last:
            yield from _alike(str(first), str(last))


def _alike(first: str, last: str) -> Iterator[str]:
    """Yield expressions for the numbers from `first` to `last`, which are as long."""
    rest = len(first) - 1
    if set(first[1:]) <= {"0"} and set(last[1:]) <= {"9"}:
        yield _digits(first[0], last[0], rest)
    elif first[0] == last[0]:
        for pattern in _alike(first[1:], last[1:]):
            yield f'"{first[0]}" {pattern}'
    else:
        yield from _alike(first, first[0] + "9" * rest)
        if int(last[0]) - int(first[0]) > 1:
            yield _digits(str(int(first[0]) + 1), str(int(last[0]) - 1), rest)
        yield from _alike(last[0] + "0" * rest, last)


def _digits(first: str, last: str, rest: int) -> str:
    return f"[{first}-{last}]" + (f" [0-9]{{{rest}}}" if rest else "")
