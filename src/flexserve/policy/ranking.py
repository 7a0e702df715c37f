"""KV and weights in one ranking: what is given up so that requests to come lose least. Pure.

Theory. Memory holds two sorts of pieces. Chunks of weights are worth what flexserve.policy.eviction says:
rate × the seconds that a usual request pays for each. An idle conversation is worth rate × seconds, too: the
rate at which requests continue it, and the seconds to have its KV again, from its sealed copy or by
computing it. The expected loss is the sum over all that goes. (A prompt that has to be computed anew also
hides more of a restore, so the sum is at most too large.)

A conversation goes whole, and conversations differ in size; so which of them go is a knapsack, and taking
the least seconds per byte first may free far more than was asked. Weights are not: for any number of chunks,
the least loss is that of the cheapest tails, by the argument of flexserve.policy.eviction. So for each
number d of chunks that conversations free, at the least loss

    kv(d)      by dynamic programming over the conversations, each of which goes or stays
    weights(m) the m cheapest chunks of all tails, m = missing - d

and the best d is tried out. Whatever frees at least as much frees some d' >= d of conversations and m' of
weights with d' + m' >= missing, and costs at least kv(d') + weights(m') >= kv(d) + weights(missing - d) for
d = min(d', missing): the result is optimal.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from flexserve.policy.eviction import Loss
from flexserve.policy.recall import Part


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """Idle KV as the ranking sees it."""

    model: str
    sequence: int
    size: int  # bytes
    rate: float  # requests per second that continue it
    seconds: float  # that each of them saves while it is in memory

    @property
    def loss(self) -> float:
        """Seconds per second that requests lose without it."""
        return self.rate * self.seconds


def cheapest(
    losses: Sequence[Loss], conversations: Sequence[Conversation], size: int, *, chunk: int
) -> list[tuple[Part, int]]:
    """Return (part, bytes to take off its end) so that at least `size` bytes come free at the least loss.

    All there is when that is less. Weights of pinned models go only where nothing else is left. Of equal
    losses conversations go before weights, and the first of them before the others. `losses`: of all tails,
    cheapest first (policy.eviction.losses). Each part is named at most once.
    """
    tails = _sums(losses, -(-max(0, size) // chunk))
    sizes = [-(-each.size // chunk) for each in conversations]
    missing = min(-(-max(0, size) // chunk), len(tails) - 1 + sum(sizes))
    best = _conversations(conversations, sizes, min(missing, sum(sizes)))
    feasible = [freed for freed in range(len(best)) if missing - freed < len(tails)]
    freed = min(feasible, key=lambda freed: (_total(tails[missing - freed], best[freed][0]), -freed))
    chosen = best[freed][1]
    parts: dict[Part, int] = {
        (each.model, each.sequence): each.size
        for number, each in enumerate(conversations)
        if chosen >> number & 1
    }
    left = missing - freed
    for loss in losses:
        count = min(loss.chunks, left)
        if count:
            part = (loss.model, None)
            parts[part] = parts.get(part, 0) + count * chunk
            left -= count
    return list(parts.items())


_Cost = tuple[int, float, float]  # chunks of pinned models; seconds per second lost; the same without prompts


def _sums(losses: Sequence[Loss], most: int) -> list[_Cost]:
    """Return the loss of the cheapest 0, 1, 2 … chunks of weights, up to `most` of them or all there are."""
    sums: list[_Cost] = [(0, 0.0, 0.0)]
    for loss in losses:
        pinned, usual, promptless = sums[-1]
        first, second = loss.value
        sums += [
            (pinned + number * loss.pinned, usual + number * first, promptless + number * second)
            for number in range(1, min(loss.chunks, most - len(sums) + 1) + 1)
        ]
    return sums


def _conversations(
    conversations: Sequence[Conversation], sizes: Sequence[int], most: int
) -> list[tuple[float, int]]:
    """Return, for each number of chunks up to `most`, (least loss, which go) to free at least as many.

    Which go: the bits of a number.
    """
    best: list[tuple[float, int]] = [(0.0, 0)] + [(math.inf, 0)] * most
    for number, (each, size) in enumerate(zip(conversations, sizes, strict=True)):
        bit, loss = 1 << number, each.loss
        before = [best[max(0, freed - size)] for freed in range(most + 1)]
        best = [
            min(without, (cost + loss, chosen | bit))
            for without, (cost, chosen) in zip(best, before, strict=True)
        ]
    return best


def _total(weights: _Cost, kv: float) -> _Cost:
    return weights[0], weights[1] + kv, weights[2] + kv
