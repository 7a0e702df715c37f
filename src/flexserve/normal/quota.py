"""How much one key may ask for: requests and tokens in a time, as buckets that fill up steadily."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable

from flexserve.errors import CallerError

_PERIODS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_RATE = re.compile(r"([1-9][0-9]{0,14})/(s|m|h|d|second|minute|hour|day)")


@dataclasses.dataclass(frozen=True, slots=True)
class Rate:
    """`amount` in each `period` ("minute", …). So much may come at once, after a pause of one period."""

    amount: int
    period: str

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Return the rate that "60/minute" or "100000/d" stands for. Raises CallerError."""
        found = _RATE.fullmatch(text)
        if found is None:
            raise CallerError(
                f"{text[:40]!r} is no rate.",
                hint='Write it like "60/minute" or "100000/day".',
                code="bad_rate",
            )
        period = next(name for name in _PERIODS if name.startswith(found[2]))
        return cls(int(found[1]), period)

    def __str__(self) -> str:
        return f"{self.amount}/{self.period}"

    @property
    def per_second(self) -> float:
        """The amount that one second brings."""
        return self.amount / _PERIODS[self.period]


class Bucket:
    """What is left of a rate. It may be overdrawn: what something takes is known after it was let in."""

    def __init__(self, rate: Rate, clock: Callable[[], float]) -> None:
        self._rate, self._clock = rate, clock
        self._level, self._at = float(rate.amount), clock()

    def wait(self, least: float) -> float:
        """Return the seconds until `least` is there; 0: it is."""
        self._fill()
        return max(0.0, (least - self._level) / self._rate.per_second)

    def take(self, amount: float) -> None:
        """Take `amount` out, which need not be there."""
        self._fill()
        self._level -= amount

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._rate.amount, self._level + (now - self._at) * self._rate.per_second)
        self._at = now


class Quota:
    """What a key may ask for now. None: without a bound. One event loop."""

    def __init__(
        self, requests: Rate | None, tokens: Rate | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._requests = None if requests is None else Bucket(requests, clock)
        self._tokens = None if tokens is None else Bucket(tokens, clock)

    def admit(self) -> float:
        """Count a request and return 0; or return the seconds after which it may be sent again."""
        wait = max(
            0.0 if self._requests is None else self._requests.wait(1),
            0.0 if self._tokens is None else self._tokens.wait(1),
        )
        if wait == 0 and self._requests is not None:
            self._requests.take(1)
        return wait

    def charge(self, tokens: int) -> None:
        """Count tokens, of a prompt or an answer, when they are known."""
        if self._tokens is not None:
            self._tokens.take(tokens)
