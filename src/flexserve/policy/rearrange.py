"""Moving what is held in quiet moments to where it saves most. Pure: `policy.eviction` says what is best.

A recall takes what costs least at that moment, and requests bring in what they need; after some of
both, the memory in use may lie with the wrong models. Moving costs restoring, so it is done one
model at a time, and only when requests will notice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from flexserve.policy.eviction import Profile, added_latency, targets
from flexserve.units import MIB

_WORTH_MOVING = 16 * MIB  # bytes; less is not worth the pages' trouble
_WORTH_SAVING = 0.01  # seconds of expected latency per request


@dataclasses.dataclass(frozen=True, slots=True)
class Rearrangement:
    """What the model that lacks most should have, and who has too much. Sizes in bytes."""

    model: str
    target: int  # from its front
    surplus: tuple[tuple[str, int], ...]  # what others can give off their tails, no more than it lacks
    worthwhile: bool  # whether all that should be moved, not this alone, is worth the trouble


def rearrangement(
    profiles: Sequence[Profile],
    resident: Mapping[str, int],
    *,
    chunk: int,
    threshold: float = 0.25,
    top: int = 3,
) -> Rearrangement | None:
    """Return the next step towards the best use of the memory that is held; None: it is there.

    `resident` holds the resident bytes of each profile's model; `threshold` and `top` as in `targets`.
    """
    held = sum(resident.values())
    best = targets(profiles, held, chunk=chunk, threshold=threshold, top=top)
    lacking = {name: best[name] - size for name, size in resident.items() if best[name] > size}
    if not lacking:
        return None
    saved = sum(
        p.rate * (added_latency(p, resident[p.model]) - added_latency(p, best[p.model])) for p in profiles
    )
    enough = saved >= _WORTH_SAVING * sum(p.rate for p in profiles)
    model = max(lacking, key=lambda name: lacking[name])
    surplus, left = [], lacking[model]
    for name, size in resident.items():
        given = min(size - best[name], left)
        if given >= chunk:
            surplus.append((name, given))
            left -= given
    worthwhile = enough and sum(lacking.values()) >= _WORTH_MOVING
    return Rearrangement(model, best[model], tuple(surplus), worthwhile)
