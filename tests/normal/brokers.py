"""What tests of the memory broker make it with."""

from __future__ import annotations

from flexserve.policy.pressure import Limits
from flexserve.units import GIB

LIMITS = Limits(low=2 * GIB, high=3 * GIB, emergency=GIB)


class Clock:
    """A clock that moves a second at every look, unless it is stopped."""

    def __init__(self) -> None:
        self.now, self.step = 0.0, 1.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now
