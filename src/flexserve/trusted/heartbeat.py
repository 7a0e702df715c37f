"""Signs of life: when something last moved in the trusted application."""

from __future__ import annotations

import time
from collections.abc import Callable


class Heartbeat:
    """The moment of the last beat, on `clock` (seconds). Any thread; a beat costs next to nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.last = clock()

    def beat(self) -> None:
        """Record that something moves."""
        self.last = self._clock()
