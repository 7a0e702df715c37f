"""Signs of life: when something last moved in the trusted application."""

from __future__ import annotations

import time


class Heartbeat:
    """The moment of the last beat (monotonic seconds). Any thread; a beat costs next to nothing."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def beat(self) -> None:
        """Record that something moves."""
        self.last = time.monotonic()
