"""Which of a model's KV slots a request gets, and how much of what is there it can use again.

A slot holds the KV of one sequence of tokens. When its request has ended the KV stays: the next
turn of the same conversation begins with the same tokens and computes only the new ones. KV is
found by the tokens themselves, so it can never be the wrong one, and only by their owner: how fast
an answer comes would tell others what was asked before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

# A prompt takes a slot over whose tokens it shares when that is at least this part of the slot's
# tokens, or of its own. Less would end a conversation for the sake of a few tokens.
_WORTHWHILE = 0.5


@dataclasses.dataclass(slots=True, eq=False)
class Slot:
    """One sequence's place in the KV cache."""

    number: int
    tokens: list[int] = dataclasses.field(default_factory=list)  # whose KV is there, from the first on
    owner: str = ""
    busy: bool = False  # a request uses it
    last_used: float = 0.0  # seconds on any one clock
    sealed: bool = False  # a copy of all of it is in the sealed store
    sealing: bool = False  # that copy is being made: the KV cannot go now, and nobody can have it
    coming: Sequence[int] = ()  # the prompt of the request that uses it


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def sharing(
    slots: Iterable[Slot], owner: str, known: Sequence[int], usable: Callable[[int, int], int]
) -> tuple[Slot, int] | None:
    """Return the slot in use that has, or is about to have, most of `known`, and how many; None: no slot.

    `known` and `owner` as in `choose`. `usable(count, shared)`: how many of the first tokens of a copy of
    `count` can be used, of those that are shared.
    """
    found = [
        (usable(max(len(slot.coming), len(slot.tokens)), common_prefix(slot.coming, known)), slot)
        for slot in slots
        if slot.busy and slot.owner == owner
    ]
    shared, slot = max(found, key=lambda pair: pair[0], default=(0, None))
    return (slot, shared) if slot is not None and shared else None


def _all(_slot: Slot, shared: int) -> int:
    return shared


def choose(
    slots: Iterable[Slot], owner: str, known: Sequence[int], usable: Callable[[Slot, int], int] = _all
) -> tuple[Slot, int] | None:
    """Return the slot for a prompt and how many of its tokens are there; None when all are busy.

    `known`: the tokens that could be used again. Not the prompt's last one, which is always
    computed, since its logits choose the next; none at all when the request wants no reuse.
    `usable` says how many of the first tokens of a slot can be, of those that are shared: not every
    cache can go back to what it held before (engine.context.Context.usable).
    """
    free = [slot for slot in slots if not (slot.busy or slot.sealing)]
    if not free:
        return None
    reusable = {
        slot.number: usable(slot, common_prefix(slot.tokens, known)) if slot.owner == owner else 0
        for slot in free
    }
    best = max(free, key=lambda slot: reusable[slot.number])
    if (shared := reusable[best.number]) and shared >= _WORTHWHILE * min(len(best.tokens), len(known)):
        return best, shared
    # Empty ones first; the lowest number, as llama.cpp computes neighbours in one go.
    oldest = min(
        free, key=lambda slot: (bool(slot.tokens), slot.last_used if slot.tokens else 0, slot.number)
    )
    return oldest, reusable[oldest.number]
