"""What to give up when the normal world recalls memory.

What was brought back without a request goes before anything else, then scratch, which costs nothing to make
again. Idle KV and weights follow: weights from the end of a model's layer order, as a prefill hides the
restore of late layers best. What each piece is worth is for the caller's policy to say (policy.ranking says
it by expected latency). Without one the order is the paper's: cold KV, then weights, the one used longest ago
first. What a running request uses is protected: its KV and scratch always, its weights unless the normal
world asked for a definite amount that nothing else can meet; then they go between two slices of its graph,
and the request goes on, slower.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from flexserve.protocol.trusted_app import Kind

Part = tuple[str, int | None]  # a model, and a sequence of its KV; None: its weights


@dataclasses.dataclass(frozen=True, slots=True)
class Holding:
    """Memory of one kind that one model holds, or one sequence of its KV."""

    model: str
    kind: Kind
    size: int  # bytes
    running: bool  # a request is using the model now
    last_used: float  # seconds on any one clock
    sequence: int | None = None  # of idle KV
    unasked: int = 0  # bytes at the end of weights that no request asked for

    @property
    def part(self) -> Part:
        """Which KV, or whose weights, it is."""
        return self.model, self.sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """Give up `size` bytes of a holding. `between_slices`: only with compute paused."""

    model: str
    kind: Kind
    size: int
    between_slices: bool
    sequence: int | None = None  # of KV; None: of any
    unasked: bool = False  # it undoes what no request asked for


# Given the bytes of weights and of idle KV, and a size, returns (part, bytes to take off its end) that come
# to the size, the least valuable first. KV goes whole.
Victims = Callable[[Mapping[Part, int], int], Sequence[tuple[Part, int]]]


def plan(holdings: Iterable[Holding], demand: int | None, *, victims: Victims | None = None) -> list[Step]:
    """Return the steps that meet `demand` bytes (None: everything not in use), in order.

    Never more than needed, but for KV and scratch, which go whole. Weights and KV go as `victims` says; an
    offer beyond the demand or beyond what there is is cut, and where offers fall short, KV and then weights
    make up for it in order of last use.
    """
    ordered = sorted((holding for holding in holdings if holding.size > 0), key=_cost)
    idle = [holding for holding in ordered if not holding.running]
    missing = sum(holding.size for holding in idle) if demand is None else demand
    steps = _undo(idle, missing)
    undone = {step.model: step.size for step in steps}
    missing -= sum(undone.values())
    ranked: list[Holding] = []
    for holding in idle:
        if holding.kind is Kind.SCRATCH:
            if missing > 0:
                steps.append(_step(holding, holding.size))
                missing -= holding.size
            continue
        gone = undone.get(holding.model, 0) if holding.kind is Kind.WEIGHTS else 0
        if gone < holding.size:
            ranked.append(dataclasses.replace(holding, size=holding.size - gone))
    taken = _take(ranked, missing, victims)
    steps += taken
    if demand is None:
        return steps
    missing -= sum(step.size for step in taken)
    running = [holding for holding in ordered if holding.running and holding.kind is Kind.WEIGHTS]
    return steps + _take(running, missing, victims)


def _undo(idle: Sequence[Holding], missing: int) -> list[Step]:
    """Return the steps that undo what no request asked for, up to `missing` bytes."""
    steps: list[Step] = []
    for holding in idle:
        size = min(holding.unasked, holding.size, missing)
        if size > 0:
            steps.append(dataclasses.replace(_step(holding, size), unasked=True))
            missing -= size
    return steps


def _take(holdings: Sequence[Holding], size: int, victims: Victims | None) -> list[Step]:
    """Return the steps that take `size` bytes of KV and weights, or all there are. `holdings` by last use."""
    if size <= 0 or not holdings:
        return []
    by_part = {holding.part: holding for holding in holdings}
    left = {part: holding.size for part, holding in by_part.items()}
    offers = [*(victims(dict(left), size) if victims else ()), *left.items()]
    taken: dict[Part, int] = {}
    for part, offered in offers:
        count = max(0, min(offered, left.get(part, 0), size))
        if count:
            count = left[part] if by_part[part].kind is Kind.KV else count
            taken[part] = taken.get(part, 0) + count
            left[part] -= count
            size -= count
    return [_step(by_part[part], count) for part, count in taken.items()]


def _step(holding: Holding, size: int) -> Step:
    return Step(holding.model, holding.kind, size, holding.running, holding.sequence)


def protected(holdings: Iterable[Holding]) -> int:
    """Return the bytes that running requests are using."""
    return sum(holding.size for holding in holdings if holding.running)


def _cost(holding: Holding) -> tuple[bool, Kind, float, str, int]:
    return holding.running, holding.kind, holding.last_used, holding.model, holding.sequence or 0
