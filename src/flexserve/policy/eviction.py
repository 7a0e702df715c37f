"""Which bytes of which models to keep when there is room for only some. Pure: time is passed in.

Theory. A model of W bytes computes a usual prompt in P seconds, front to back at W/P bytes per
second. Let its first R bytes be resident. When a request comes, the missing tail is restored in
layer order at r bytes per second while the front computes: byte x > R is there at (x - R)/r, and
from then on at least the compute of what lies behind it remains, (W - x)·P/W. The request's first
token therefore comes at the largest, over all x, of these sums, and not before P:

    T = max(P, max over R < x <= W of (x - R)/r + (W - x)·P/W)

The inner sum is linear in x, so it is largest at one end. At x = R it is at most P; at x = W it is
(W - R)/r, the restore alone. Against a wholly resident model, the request pays

    added(R) = max(0, (W - R)/r - P)

which falls with slope -1/r up to R = W - r·P and is zero beyond: r·P bytes hide behind the compute
of the prompt, the first W - r·P bytes are *exposed*. A maximum of two linear functions is convex,
and convex stays convex when only every chunk's multiple of R is looked at.

Why greedy is optimal. What is to be made least is the expected latency per second of wall time,
the sum over models of rate × added(R), under one bound on the sum of the chunks. Each model's
gain from one more chunk never rises with the chunks it has (convexity). So the chunks with
the largest gains, of all models together, are for each model a prefix: taking them in order of
gain is a legal assignment, and no other one of as many chunks has a larger sum. Taking chunks
away is the same argument read backwards: the least gains, of all models together, are for each
model a tail, and no other set of as many chunks costs less.

A chunk that hides anyway gains nothing by this measure; there a second measure decides, the gain
for a request with no prompt to hide behind, rate × chunk/r. It does not depend on R, so that
ordering by both, the first one first, keeps the argument.

The last chunk of a model may be partly empty. It takes a whole chunk of memory all the same,
so budgets and demands are counted in chunks, and the argument needs no knapsack.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

_RECENT = 101  # invocations that the usual prompt length is the median of; odd, so that it is one of them
_SHORTEST = 1.0  # seconds; no rate is taken over less


class InvocationLog:
    """Who was invoked how often over the last `window` seconds, and with how long a prompt.

    Holds at most `limit` invocations. When more come within a window, rates are over the time that
    the held ones span. A clock that jumps back counts as standing still. Not thread-safe.
    """

    def __init__(self, window: float = 3600.0, limit: int = 4096) -> None:
        if window <= 0 or limit < 1:
            raise ValueError("a log needs a window and room for an invocation")
        self._window, self._limit = window, limit
        self._order: deque[tuple[float, str]] = deque()  # time, model; oldest first
        self._prompts: dict[str, deque[int]] = {}  # of each model, in the same order; never empty
        self._latest = float("-inf")
        self._offset = 0.0  # seconds that the clock has jumped back in all
        self._overflowed = float("-inf")  # time of the youngest invocation dropped for want of room

    def note(self, model: str, prompt_tokens: int, now: float) -> None:
        """Note that `model` was invoked at `now` with a prompt of `prompt_tokens`."""
        if now + self._offset < self._latest:
            self._offset = self._latest - now
        self._expire(now)
        if len(self._order) == self._limit:
            self._overflowed = self._drop()
        self._order.append((self._latest, model))
        self._prompts.setdefault(model, deque()).append(prompt_tokens)

    def rate(self, model: str, now: float) -> float:
        """Return the invocations of `model` per second."""
        self._expire(now)
        span = self._window
        if self._overflowed > self._latest - self._window:
            span = max(self._latest - self._overflowed, min(_SHORTEST, self._window))
        return len(self._prompts.get(model, ())) / span

    def share(self, model: str, now: float) -> float:
        """Return which fraction of all invocations were of `model`; 0 when there were none."""
        self._expire(now)
        return len(self._prompts.get(model, ())) / len(self._order) if self._order else 0.0

    def usual_prompt(self, model: str, now: float) -> float:
        """Return the median prompt of the model's recent invocations, in tokens; 0 when there were none."""
        self._expire(now)
        recent = list(itertools.islice(reversed(self._prompts.get(model, ())), _RECENT))
        return float(statistics.median(recent)) if recent else 0.0

    def _expire(self, now: float) -> None:
        self._latest = max(self._latest, now + self._offset)
        while self._order and self._order[0][0] <= self._latest - self._window:
            self._drop()

    def _drop(self) -> float:
        """Forget the oldest invocation; return when it was."""
        when, model = self._order.popleft()
        prompts = self._prompts[model]
        prompts.popleft()
        if not prompts:
            del self._prompts[model]
        return when


@dataclasses.dataclass(frozen=True, slots=True)
class Speeds:
    """How fast this machine is with a model. Both are positive."""

    restore: float  # bytes per second, when everything is missing
    prefill: float  # prompt tokens per second, when nothing is

    def __post_init__(self) -> None:
        if not (self.restore > 0 and self.prefill > 0):
            raise ValueError("speeds are positive")


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """A model as the cache sees it."""

    model: str
    weights: int  # bytes
    rate: float  # invocations per second
    share: float  # of all models' invocations, 0 to 1
    prompt: float  # tokens of a usual prompt
    speeds: Speeds
    pinned: bool = False  # a person wants it kept

    @property
    def exposed(self) -> int:
        """Bytes, from the front, whose restore the compute of a usual prompt cannot hide."""
        return math.ceil(_exposed(self))


def _exposed(profile: Profile) -> float:
    hidden = profile.speeds.restore * profile.prompt / profile.speeds.prefill
    return max(0.0, profile.weights - hidden)


def added_latency(profile: Profile, resident: int) -> float:
    """Return the seconds that a usual request pays when only the first `resident` bytes are there."""
    missing = max(0, profile.weights - resident)
    return max(0.0, missing / profile.speeds.restore - profile.prompt / profile.speeds.prefill)


def targets(
    profiles: Iterable[Profile], budget: int, *, chunk: int, threshold: float = 0.25, top: int = 3
) -> dict[str, int]:
    """Return how many bytes of each model, from its front, are best kept within `budget` bytes.

    Pinned models come first and whole, then the exposed bytes of
    the `chosen` ones, the best gain per byte first; what room is left goes to the hidden bytes of the
    chosen, then to the other models in the same way. A model that nobody invoked gets nothing
    unless it is pinned: room alone is no reason to hold memory.

    Each target is a multiple of `chunk`, or the whole model. The sum, in whole chunks, is
    never over the budget.
    """
    known = sorted(profiles, key=lambda profile: profile.model)
    favoured = chosen(known, threshold=threshold, top=top)
    room = max(0, budget) // chunk
    given = {profile.model: 0 for profile in known}
    ranked = [
        (_tier(profile, profile.model in favoured), piece)
        for profile in known
        if profile.pinned or profile.rate > 0
        for piece in _pieces(profile, chunk)
    ]
    # Within a tier by falling value; pieces of one model stay in layer order, since the sort is
    # stable and their values fall.
    for _, piece in sorted(ranked, key=lambda entry: (entry[0], [-value for value in entry[1].value])):
        count = min(piece.chunks, room)
        given[piece.model] += count
        room -= count
    return {profile.model: min(given[profile.model] * chunk, profile.weights) for profile in known}


@dataclasses.dataclass(frozen=True, slots=True)
class Loss:
    """Successive chunks off the tail of a model that cost the same when they go."""

    pinned: bool
    value: tuple[float, float]  # seconds per second: lost with each chunk; with each without a prompt
    model: str
    chunks: int


def losses(profiles: Iterable[Profile], resident: Mapping[str, int], *, chunk: int) -> list[Loss]:
    """Return the tails of all models, the cheapest first, pinned ones last; each model's in their order.

    A model without a profile has no value.
    """
    known = {profile.model: profile for profile in profiles}
    found: list[Loss] = []
    for model in sorted(resident):
        profile = known.get(model)
        held = -(-max(0, resident[model]) // chunk)
        if profile is None:
            found.append(Loss(False, (0.0, 0.0), model, held))
            continue
        pieces = reversed(_clip(_pieces(profile, chunk), held))
        found += [Loss(profile.pinned, piece.value, model, piece.chunks) for piece in pieces]
    return sorted(found, key=lambda loss: (loss.pinned, loss.value))


@dataclasses.dataclass(frozen=True, slots=True)
class _Piece:
    """Successive chunks of a model that are worth the same."""

    model: str
    chunks: int
    value: tuple[float, float]  # seconds per second: gained by each chunk; by each without a prompt


def _pieces(profile: Profile, chunk: int) -> list[_Piece]:
    """Return the model front to back, in pieces of falling value: exposed, on the border, hidden."""
    total = -(-profile.weights // chunk)
    exposed = _exposed(profile)
    whole = int(exposed // chunk)
    border = min(1, total - whole)
    per_byte = profile.rate / profile.speeds.restore
    parts = ((whole, chunk), (border, exposed - whole * chunk), (total - whole - border, 0))
    return [
        _Piece(profile.model, count, (per_byte * size, per_byte * chunk)) for count, size in parts if count
    ]


def _clip(pieces: Sequence[_Piece], chunks: int) -> list[_Piece]:
    """Return the front of `pieces` that is `chunks` long; what is beyond the model is worth nothing."""
    clipped: list[_Piece] = []
    for piece in pieces:
        count = min(piece.chunks, chunks)
        clipped.append(dataclasses.replace(piece, chunks=count))
        chunks -= count
    if chunks and pieces:
        clipped.append(_Piece(pieces[0].model, chunks, (0.0, 0.0)))
    return clipped


def chosen(profiles: Iterable[Profile], *, threshold: float, top: int) -> set[str]:
    """Return the models with a share of at least `threshold`; when none has that, the `top` ones by rate."""
    invoked = [profile for profile in profiles if profile.rate > 0]
    frequent = {profile.model for profile in invoked if profile.share >= threshold}
    if frequent:
        return frequent
    best = sorted(invoked, key=lambda profile: (-profile.rate, profile.model))
    return {profile.model for profile in best[:top]}


def _tier(profile: Profile, is_chosen: bool) -> int:
    """Return when a model is served: pinned ones, chosen ones, others."""
    return 0 if profile.pinned else 1 if is_chosen else 2
