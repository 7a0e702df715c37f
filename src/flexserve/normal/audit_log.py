"""What the memory broker decided: for people, line by line with reasons, and for metrics, summed up."""

from __future__ import annotations

import dataclasses
import enum
import time
from collections import deque
from collections.abc import Callable

MAX_DECISIONS = 512
_SAME_BREATH = 1.0  # seconds; parts of one thing are no further apart


class Kind(enum.Enum):
    """What sort of thing was decided, or happened to granted memory."""

    GRANT = "grant"
    REFUSAL = "refusal"
    RECALL = "recall"
    RETURN = "return"
    REWARM = "rewarm"  # a model may come back though no request asks for it
    HOLD = "hold"  # for another program that asked
    CAP = "cap"
    PIN = "pin"


_IN_PARTS = (Kind.GRANT, Kind.REFUSAL, Kind.RETURN, Kind.REWARM)


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """One line of the log: `count` decisions alike, between `at` and `until` (seconds since the epoch).

    A restore asks for its memory in dozens of pieces; those are one line.
    """

    number: int  # 1, 2, 3 …
    at: float
    until: float
    kind: Kind
    size: int  # bytes, of all together
    count: int
    reason: str
    model: str = ""  # whose memory it is, where one model's


@dataclasses.dataclass(slots=True)
class Counters:
    """Sums since the start. Sizes in bytes."""

    granted: int = 0
    returned: int = 0  # unasked
    recalled: int = 0  # on demand
    recalls: int = 0
    recall_seconds: float = 0.0
    refusals: dict[str, int] = dataclasses.field(default_factory=dict)  # by bound


class AuditLog:
    """The last MAX_DECISIONS lines. `clock` orders them; `wall` is for display only."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self._clock, self._wall = clock, wall
        self._lines: deque[Decision] = deque(maxlen=MAX_DECISIONS)
        self._last_at = float("-inf")
        self._number = 0

    def note(self, kind: Kind, size: int, reason: str, model: str = "") -> None:
        """Add a decision: to the last line, if that is a part of the same thing."""
        now, wall = self._clock(), self._wall()
        last = self._lines[-1] if self._lines else None
        same = last is not None and (last.kind, last.reason, last.model) == (kind, reason, model)
        if last and same and kind in _IN_PARTS and now - self._last_at <= _SAME_BREATH:
            self._lines[-1] = dataclasses.replace(
                last, until=wall, size=last.size + size, count=last.count + 1
            )
        else:
            self._number += 1
            self._lines.append(Decision(self._number, wall, wall, kind, size, 1, reason, model))
        self._last_at = now

    def lines(self) -> tuple[Decision, ...]:
        """Return all lines, oldest first."""
        return tuple(self._lines)

    def settled(self) -> int:
        """Return the number of the newest line that will not change any more."""
        going_on = bool(self._lines) and self._clock() - self._last_at <= _SAME_BREATH
        return self._number - 1 if going_on else self._number
