"""What to give up when the normal world recalls memory.

The order is the paper's: scratch first (costs nothing to make again), then cold KV, then
weights, of the least valuable model first, from the end of its layer order (a prefill hides
the restore of late layers best). What a model's tail is worth is for the caller's policy to say
(flexserve.policy.eviction.victims says it by expected latency); without one, the model used longest
ago is worth least. What a running request uses is protected: its KV and scratch always, its
weights unless the normal world asked for a definite amount that nothing else can meet; then
they go between two slices of its graph, and the request goes on, slower.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from flexserve.protocol.trusted_app import Kind


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


# Given the resident bytes of each model's weights and a size, returns (model, bytes to take off its
# tail) that come to the size, the least valuable first.
Victims = Callable[[Mapping[str, int], int], Sequence[tuple[str, int]]]


def plan(holdings: Iterable[Holding], demand: int | None, *, victims: Victims | None = None) -> list[Step]:
    """Return the steps that meet `demand` bytes (None: everything not in use), in order.

    Never more than needed, but for KV and scratch, which go whole. Weights go as `victims` says; an
    offer beyond the demand or beyond what there is is cut, and where offers fall short, models make
    up for it in order of last use.
    """
    ordered = sorted((holding for holding in holdings if holding.size > 0), key=_cost)
    steps: list[Step] = []
    missing = demand
    for holding in ordered:
        if holding.kind is Kind.WEIGHTS or holding.running or (missing is not None and missing <= 0):
            continue
        steps.append(Step(holding.model, holding.kind, holding.size, between_slices=False))
        missing = None if missing is None else missing - holding.size
    weights = [holding for holding in ordered if holding.kind is Kind.WEIGHTS]
    idle = [holding for holding in weights if not holding.running]
    if missing is None:
        return steps + _take(idle, sum(holding.size for holding in idle), victims)
    steps += _take(idle, missing, victims)
    missing -= sum(step.size for step in steps if step.kind is Kind.WEIGHTS)
    return steps + _take([holding for holding in weights if holding.running], missing, victims)


def _take(holdings: Sequence[Holding], size: int, victims: Victims | None) -> list[Step]:
    """Return the steps that take `size` bytes of weights, or all there are. `holdings` by last use."""
    if size <= 0 or not holdings:
        return []
    left = {holding.model: holding.size for holding in holdings}
    by_use = [(holding.model, holding.size) for holding in holdings]
    taken: dict[str, int] = {}
    for model, offered in [*(victims(dict(left), size) if victims else ()), *by_use]:
        count = max(0, min(offered, left.get(model, 0), size))
        if count:
            taken[model] = taken.get(model, 0) + count
            left[model] -= count
            size -= count
    running = {holding.model: holding.running for holding in holdings}
    return [Step(model, Kind.WEIGHTS, count, between_slices=running[model]) for model, count in taken.items()]


def protected(holdings: Iterable[Holding]) -> int:
    """Return the bytes that running requests are using."""
    return sum(holding.size for holding in holdings if holding.running)


def _cost(holding: Holding) -> tuple[bool, Kind, float, str]:
    return holding.running, holding.kind, holding.last_used, holding.model
