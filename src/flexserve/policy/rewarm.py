"""Which model comes back in a quiet moment, though no request asks for it. Pure: time is passed in.

Weights that a recall took are brought back when nobody needs the memory any more: those of models that
requests will probably ask for. Such memory is the first to be given up. When it is given up before a
request used it, the restore was in vain, so the next one waits, twice as long each time.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable

from flexserve.policy.eviction import Profile, chosen
from flexserve.units import MIB

_STEP = 16 * MIB  # bytes; fewer exposed ones are not worth a step of their own
_PAUSES = (22.0, 480.0)  # seconds after a restore in vain, at first and at most


class Reason(enum.IntEnum):
    """Why a model is brought back, in the order in which models are."""

    PINNED = 0
    KEPT = 1
    EXPECTED = 2
    USED = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """An open model that computes nothing at the moment."""

    profile: Profile
    resident: int  # bytes of its weights
    kept: bool | None  # its last user wants it kept now, or no longer; None: said nothing
    expected: bool  # the sender of a request announced it, or it usually comes next


@dataclasses.dataclass(frozen=True, slots=True)
class Rewarming:
    """The model that comes back next, and how many bytes from its front it should have."""

    model: str
    target: int
    reason: Reason
    share: float  # of all invocations, 0 to 1

    def __str__(self) -> str:
        """Say why, for people."""
        why = {
            Reason.PINNED: "it is pinned",
            Reason.KEPT: "its last request asked to keep it",
            Reason.EXPECTED: "it is expected next",
            Reason.USED: f"it had {self.share:.0%} of the requests of the last hour",
        }
        return f"{self.model}: {why[self.reason]}"


def rewarming(candidates: Iterable[Candidate], *, threshold: float, top: int) -> Rewarming | None:
    """Return what to bring back next; None: everything chosen is there.

    First the exposed bytes (policy.eviction) of each chosen model, then the rest: pinned ones first, then
    those that are to be kept, expected ones, and the ones that are used often (policy.eviction.chosen).
    A model whose last user wants it kept no longer is left away, unless it is pinned.
    """
    known = list(candidates)
    often = chosen((each.profile for each in known), threshold=threshold, top=top)
    lacking = []
    for each in known:
        profile, reason = each.profile, _reason(each, often)
        if reason is not None and each.resident < profile.weights:
            exposed = profile.exposed - each.resident >= _STEP
            gain = profile.rate / profile.speeds.restore
            target = profile.exposed if exposed else profile.weights
            step = Rewarming(profile.model, target, reason, profile.share)
            lacking.append(((not exposed, reason, -gain, profile.model), step))
    return min(lacking, key=lambda ranked: ranked[0])[1] if lacking else None


def _reason(candidate: Candidate, often: set[str]) -> Reason | None:
    if candidate.profile.pinned:
        return Reason.PINNED
    if candidate.kept is not None:
        return Reason.KEPT if candidate.kept else None
    if candidate.expected:
        return Reason.EXPECTED
    return Reason.USED if candidate.profile.model in often else None


class Pause:
    """How long nothing is brought back after it was in vain. Seconds of any clock; not thread-safe."""

    def __init__(self) -> None:
        self._length = 0.0
        self._until = float("-inf")

    def left(self, now: float) -> float:
        """Return the seconds until something may be brought back; 0: now."""
        return max(0.0, self._until - now)

    def undone(self, now: float) -> None:
        """Record that what was brought back was given up before a request used it."""
        shortest, longest = _PAUSES
        if not self.left(now):  # else a part of the same
            self._length = min(max(shortest, 2 * self._length), longest)
        self._until = now + self._length

    def used(self) -> None:
        """Record that a request used what was brought back."""
        self._length = 0.0
