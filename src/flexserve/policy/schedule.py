"""Which model computes next on the one engine. Pure: time is passed in.

The engine works in turns (a slice of a prefill, one token of every sequence); before each it asks
who is next. Models that are resident share it turn by turn. One that is not must first be restored,
in time that nobody computes, so it takes the engine from others only for a reason.

    wait                 seconds since a lane with work had a turn, or since its oldest request came
    effective priority   priority + one for each `aging` seconds of wait
    net wait             wait - what the switch to it costs

A lane is *in place* when the switch costs next to nothing, or when it had the last turn. Of the
lanes that may have the turn, the one of the highest effective priority gets it, then of the largest
net wait. Lanes in place always may. Another one may when nobody in place has work; when its net wait
reaches `patience` and the engine is not *settled*; or when its plain priority is above the bar, which
is the effective priority of the lane that the engine settled for, afterwards the highest priority in
place.

A switch that costs m seconds settles the engine for m + max(quantum, m) seconds: the restore, and at
least as long a time of work. So with equal priorities at least half of the engine's time is work,
however many models wait. Lanes in place alternate: whoever has a turn has no wait after it.

Nobody starves. Let x be one of n lanes with work, d the distance from the lowest of their
priorities to the highest, M the highest cost of a switch and T the longest turn. Call L =
max(aging × (d + 1), patience + M). Once another lane had a turn L seconds or more after x's wait
began, x has waited longer by at least aging × (d + 1) seconds and so is above it, whatever their
priorities. Where both may have the turn, each of the n - 1 others therefore wins at most once more
against x. After L seconds x may have the turn whenever the engine is not settled. A switch settles
it for at most S = M + max(quantum, M), to which a turn may add T; while it is settled, only plain
priorities above the bar break in, and since each such break-in raises the bar, at most d do. So x
has a turn within

    L + n × (d + 1) × (S + T)

seconds. `Turns.bound` computes it, and tests hold the schedule to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

_IN_PLACE = 0.01  # seconds; a switch that costs less is lost in the length of a turn


@dataclasses.dataclass(frozen=True, slots=True)
class Lane:
    """One model and what is to be done for it. Times in seconds, `oldest` on the clock of `now`."""

    model: str
    active: int  # sequences being generated
    waiting: int  # requests not begun
    oldest: float | None  # when the oldest of those came; None: there is none
    priority: int  # the highest among its requests
    missing: float  # what a switch to it costs now

    @property
    def has_work(self) -> bool:
        """Whether a turn would be of use to it."""
        return self.active > 0 or self.waiting > 0


class Turns:
    """Gives out turns. Remembers who had one when, of the lanes named last. Not thread-safe."""

    def __init__(self, patience: float = 2.0, quantum: float = 1.0, aging: float = 10.0) -> None:
        if patience < 0 or quantum < 0 or aging <= 0:
            raise ValueError("patience and quantum cannot be negative, and aging is positive")
        self._patience, self._quantum, self._aging = patience, quantum, aging
        self._current: str | None = None
        self._since: dict[str, float] = {}  # when the wait of a lane with work began
        self._settled = float("-inf")  # until then nobody but a higher priority causes a restore
        self._bar = 0  # the effective priority of the lane that the engine settled for

    def next(self, lanes: Sequence[Lane], now: float) -> str | None:
        """Return the model whose turn it is at `now`; None when nobody has work.

        Deterministic, whatever the order of `lanes`. Takes it that the model has the turn until
        the next call.
        """
        busy = [lane for lane in lanes if lane.has_work]
        self._since = {lane.model: self._waiting_since(lane, now) for lane in busy}
        if not busy:
            self._current = None
            return None
        eligible = self._eligible(busy, now)
        winner = max(
            eligible,
            key=lambda lane: (self._effective_priority(lane, now), self._net_wait(lane, now), lane.model),
        )
        if not self._in_place(winner):
            self._settled = now + winner.missing + max(self._quantum, winner.missing)
            self._bar = self._effective_priority(winner, now)
        self._current = winner.model
        return winner.model

    def bound(self, *, lanes: int, priorities: int, missing: float, turn: float) -> float:
        """Return the seconds within which every one of `lanes` lanes with work has a turn.

        `priorities` is the distance from the lowest priority to the highest, `missing` the highest
        cost of a switch, `turn` the longest turn (seconds).
        """
        begin = max(self._aging * (priorities + 1), self._patience + missing)
        return begin + lanes * (priorities + 1) * (missing + max(self._quantum, missing) + turn)

    def _eligible(self, busy: Sequence[Lane], now: float) -> Sequence[Lane]:
        placed = [lane for lane in busy if self._in_place(lane)]
        if not placed:
            return busy
        settled = now < self._settled
        bar = self._bar if settled else max(lane.priority for lane in placed)
        others = [
            lane
            for lane in busy
            if not self._in_place(lane)
            and (lane.priority > bar or (not settled and self._net_wait(lane, now) >= self._patience))
        ]
        return placed + others

    def _in_place(self, lane: Lane) -> bool:
        return lane.missing <= _IN_PLACE or lane.model == self._current

    def _waiting_since(self, lane: Lane, now: float) -> float:
        """Return when its wait began: at its last turn, or later, when there was first work for it."""
        if lane.model == self._current:
            return now
        since = self._since.get(lane.model)
        if lane.active or lane.oldest is None:
            # What is being generated waits, no matter how new the queued requests are.
            return min(now, since if since is not None else now)
        return min(now, max(lane.oldest, since) if since is not None else lane.oldest)

    def _wait(self, lane: Lane, now: float) -> float:
        return now - self._since[lane.model]

    def _effective_priority(self, lane: Lane, now: float) -> int:
        return lane.priority + int(self._wait(lane, now) / self._aging)

    def _net_wait(self, lane: Lane, now: float) -> float:
        return self._wait(lane, now) - lane.missing
