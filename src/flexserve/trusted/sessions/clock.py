"""The time of day, which nobody can turn back while this process lives."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], int]  # milliseconds since 1970


def steady_clock() -> Clock:
    """Return a clock that takes the host's word for the time once, and counts by itself from then on.

    The host sets the clock. If it could turn this one back, a request of the past would be new again.
    """
    offset = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return lambda: (time.clock_gettime_ns(time.CLOCK_BOOTTIME) + offset) // 1_000_000
