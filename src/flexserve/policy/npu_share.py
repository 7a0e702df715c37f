"""When to ask for the NPU, how long to hold it, and when to let it go. Pure: time is passed in.

The NPU is the normal world's. A secure world that has products to compute asks for it, and gives it back
when it has none, or when the normal world wants it and has waited for its turn:

- Nobody else wants it: it is held while products come, and for LINGER after the last one.
- Both want it: they take turns. The secure world holds it for a TURN, less where the normal world's deadline
  comes first, and the normal world has it for as long afterwards, so each has half of it; the CPU computes
  the secure world's products meanwhile. A turn is over, too, when no products came for a PAUSE, or the next
  job would not end in time.

A turn counts from the moment that the NPU came: who waited for it already has had to wait.
"""

from __future__ import annotations

TURN = 0.1  # seconds
LINGER = 0.3  # seconds; handing it over and back costs milliseconds, and requests come in bursts
PAUSE = 0.02  # seconds without a product, while others want it: then there are no more
_MARGIN = 1 / 4  # of the time until a deadline is kept for the job under way …
_WAY_BACK = 1 / 16  # … and this much of it for the way back
_AFTER_LOSS = 10.0  # seconds; a job that does not end costs its request seconds


class NpuShare:
    """Follows one NPU. Times in seconds, of any one clock."""

    def __init__(self, turn: float = TURN, linger: float = LINGER) -> None:
        self._turn, self._linger = turn, linger
        self._came = self._used = float("-inf")
        self._rest_until = float("-inf")
        self._leave_by: float | None = None  # since somebody wants it …
        self._abort_by: float | None = None

    def may_ask(self, now: float) -> bool:
        """Return whether it is our turn to ask for it."""
        return now >= self._rest_until

    def came(self, now: float) -> None:
        """Record that it is here."""
        self._came = self._used = now
        self._leave_by = self._abort_by = None

    def used(self, now: float) -> None:
        """Record that there is, or was, something for it to do."""
        self._used = now

    def wanted_back(self, now: float, deadline: float) -> None:
        """Record that the normal world wants it back by `deadline`. Later ones postpone nothing."""
        left = max(0.0, deadline - now)
        turn = min(self._came + self._turn, deadline - _MARGIN * left)
        self._leave_by = _earlier(self._leave_by, turn)
        self._abort_by = _earlier(self._abort_by, deadline - _WAY_BACK * left)

    def fits(self, now: float, seconds: float) -> bool:
        """Return whether a job that takes so long would end in time."""
        return self._abort_by is None or now + seconds <= self._abort_by

    def end_turn(self, now: float) -> None:
        """Record that the next job does not fit."""
        self._leave_by = _earlier(self._leave_by, now)

    def leave_at(self) -> float:
        """Return when to let it go, between two jobs, unless something happens first."""
        if self._leave_by is None:
            return self._used + self._linger
        return min(self._used + min(self._linger, PAUSE), self._leave_by)

    def abort_at(self) -> float | None:
        """Return when to let it go in the middle of a job; None: never."""
        return self._abort_by

    def left(self, now: float) -> None:
        """Record that it is gone: if it was wanted, the normal world has its turn now, as long as ours."""
        if self._leave_by is not None:
            self._rest_until = now + min(self._turn, now - self._came)
        self._leave_by = self._abort_by = None

    def failed(self, now: float) -> None:
        """Record that a job was lost: it is left alone for a while."""
        self._rest_until = now + _AFTER_LOSS


def _earlier(one: float | None, other: float) -> float:
    return other if one is None else min(one, other)
