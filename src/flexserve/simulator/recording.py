"""What a server has logged, as a load: the JSON lines of `flexserve serve`, read back.

Two of its events count, and all others are skipped:

    {"event": "request", "timestamp": "…Z", "model": "llama", "prompt_tokens": 9, "completion_tokens": 4}
    {"event": "memory_sample", "timestamp": "…Z", "total": 8e9, "available": 5e9, "refaulted": 0, "used": 1e9}

A request without counts of tokens was no question, or had no answer. `used` are the bytes of the sample
that were the secure world's own; what others had beside follows. Which files they used the log does not
say: what they read back between two samples tells how fast they use them, and that they did not fit.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping
from typing import Any

from flexserve.errors import CallerError
from flexserve.simulator.host_memory import Others
from flexserve.simulator.load import HOUR, Change, Load, Request
from flexserve.simulator.machine import SimModel
from flexserve.units import MIB

MAX_LINE = 64 << 10  # characters
_MOST_TOKENS = 1 << 24
_MOST_BYTES = 1 << 44
_LAYERS = 32  # of any model: the log does not say
_LACKING = MIB // 4  # bytes a second read back that tell of files that do not fit


def read(lines: Iterable[str], models: Mapping[str, int], name: str) -> Load:
    """Return the load in `lines`. `models` are the bytes of each model's weights.

    Raises CallerError, which names the line, for one that is not of such a log, for a model that is not
    known and for a time before the line above it; and when there is no request, or no sample of memory.
    """
    reader = _Reader(models)
    number = 0
    for number, line in enumerate(lines, start=1):
        try:
            reader.take(line)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
            raise CallerError(
                f"Line {number} of {name} cannot be used: {reason}.",
                hint="Give the log of `flexserve serve` where standard error is a file: JSON, line by line.",
                code="bad_log",
            ) from None
    if not reader.requests or not reader.changes:
        what = "request" if reader.changes else "sample of memory"
        raise CallerError(
            f"There is no {what} in the {number} lines of {name}.",
            hint="Give a log of a server that answered at --log-level info for some minutes.",
            code="bad_log",
        )
    return reader.load(name)


class _Reader:
    """Takes one line after the other."""

    def __init__(self, models: Mapping[str, int]) -> None:
        self._models = models
        self.requests: list[Request] = []
        self.changes: list[Change] = []
        self._memory = 0
        self._began: float | None = None
        self._now = 0.0
        self._refaulted: tuple[float, int] | None = None

    def take(self, line: str) -> None:
        """Read a line. Raises ValueError, KeyError or TypeError."""
        if len(line) > MAX_LINE:
            raise ValueError(f"it has more than {MAX_LINE} characters")
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError("it is not JSON") from None
        if not isinstance(said, dict):
            raise ValueError("it is not an object")
        if said["event"] == "request" and "completion_tokens" in said:
            self._take_request(said)
        elif said["event"] == "memory_sample":
            self._take_sample(said)

    def load(self, name: str) -> Load:
        """Return all that was read."""
        asked = sorted({request.model for request in self.requests})
        models = tuple(SimModel(model, float(self._models[model]), _LAYERS) for model in asked)
        hours = (self._now + 60) / HOUR
        requests = sorted(self.requests, key=lambda request: request.at)
        return Load(name, self._memory, models, tuple(requests), tuple(self.changes), hours)

    def _take_request(self, said: dict[str, Any]) -> None:
        model = said["model"]
        if model not in self._models:
            raise ValueError(f"the size of the model {model!r} is not known")
        prompt, answer = (_count(said, key, _MOST_TOKENS) for key in ("prompt_tokens", "completion_tokens"))
        # The line was written at the end of the answer.
        asked = self._time(said) - _count(said, "ms", 1 << 40) / 1000
        self.requests.append(Request(max(0.0, asked), model, max(1, prompt), max(1, answer)))

    def _take_sample(self, said: dict[str, Any]) -> None:
        at = self._time(said)
        total, available, used = (_count(said, key, _MOST_BYTES) for key in ("total", "available", "used"))
        if not 0 < total >= available + used:
            raise ValueError("what is available and used is more than the total")
        self._memory = self._memory or total
        own = total - available - used
        speed, files = 0.0, 0
        if said.get("refaulted") is not None:
            refaulted = _count(said, "refaulted", 1 << 60)
            if self._refaulted is not None and at > self._refaulted[0]:
                speed = max(0, refaulted - self._refaulted[1]) / (at - self._refaulted[0])
            self._refaulted = at, refaulted
        if speed >= _LACKING:  # a working set larger than what is left for it, by a quarter
            files, speed = (available + used) * 5 // 4, 5 * speed
        self.changes.append(Change(at, Others(own, files, speed)))

    def _time(self, said: dict[str, Any]) -> float:
        """Return the seconds since the first line that counts. Lines do not run back in time."""
        stamp = said["timestamp"]
        if not isinstance(stamp, str):
            raise ValueError("its timestamp is not a text")
        at = datetime.datetime.fromisoformat(stamp).timestamp()
        if self._began is None:
            self._began = at
        if at - self._began < self._now:
            raise ValueError("it is older than the line above it")
        self._now = at - self._began
        return self._now


def _count(said: dict[str, Any], key: str, most: int) -> int:
    value = said[key]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"{key} is not a number from 0 to {most}")
    return int(value)
