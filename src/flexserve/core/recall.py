"""What to give up when the normal world recalls memory.

The order is the paper's: scratch first (costs nothing to make again), then cold KV, then
weights, of the model used longest ago first, from the end of its layer order (a prefill hides
the restore of late layers best). What a running request uses is protected: its KV and scratch
always, its weights unless the normal world asked for a definite amount that nothing else can
meet; then they go between two slices of its graph, and the request goes on, slower.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable


class Kind(enum.IntEnum):
    """What memory is used for, in the order in which it is given up."""

    SCRATCH = 0
    KV = 1
    WEIGHTS = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Holding:
    """Memory of one kind that one model holds."""

    model: str
    kind: Kind
    size: int  # bytes
    running: bool  # a request is using the model now
    last_used: float  # seconds on any one clock


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """Give up `size` bytes of a holding. `between_slices`: only with compute paused."""

    model: str
    kind: Kind
    size: int
    between_slices: bool


def plan(holdings: Iterable[Holding], demand: int | None) -> list[Step]:
    """Return the steps that meet `demand` bytes (None: everything not in use), in order.

    Never more than needed, but for KV and scratch, which go whole.
    """
    steps: list[Step] = []
    missing = demand
    for holding in sorted(holdings, key=_cost):
        if holding.size == 0 or (missing is not None and missing <= 0):
            continue
        if holding.running and (missing is None or holding.kind is not Kind.WEIGHTS):
            continue
        whole = missing is None or holding.kind is not Kind.WEIGHTS
        size = holding.size if whole else min(holding.size, missing or 0)
        steps.append(Step(holding.model, holding.kind, size, between_slices=holding.running))
        if missing is not None:
            missing -= size
    return steps


def protected(holdings: Iterable[Holding]) -> int:
    """Return the bytes that running requests are using."""
    return sum(holding.size for holding in holdings if holding.running)


def _cost(holding: Holding) -> tuple[bool, Kind, float, str]:
    return holding.running, holding.kind, holding.last_used, holding.model
