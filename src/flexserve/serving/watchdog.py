"""Notices an engine that stands still, and ends what can be ended of it.

A turn of the engine's thread may take long and be right: a long prompt on a slow machine, a wait for a
large model to come back. So it is not turns that are timed, but how long nothing moved in one: neither a
slice of a graph was computed, nor memory committed, nor a piece of a model read or of its image written.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

_ALARM = 0.2  # of the patience, after which others are told
GRACE = 10.0  # seconds between the attempt to cancel and the end, or less: no more than the patience


class Watchdog:
    """Calls `cancel` when nothing moved for `patience` seconds of a turn, and `end` when that did not help.

    Long before, `tell` hears for how many seconds nothing moved, and 0 when something does again.
    `last_moved` returns when something moved last, on the `clock` (seconds), of which `sleep` lets some pass;
    `turn` is the engine thread's.
    """

    def __init__(
        self,
        last_moved: Callable[[], float],
        tell: Callable[[float], None],
        cancel: Callable[[], None],
        end: Callable[[float], None],
        *,
        patience: float,
        grace: float = GRACE,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._last_moved, self._tell, self._cancel, self._end = last_moved, tell, cancel, end
        self._patience, self._grace, self._clock, self._sleep = patience, min(grace, patience), clock, sleep
        self._began: float | None = None  # the present turn (the clock's seconds); None: between turns
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Watch what happens inside the block."""
        self._began = self._clock()
        try:
            yield
        finally:
            self._began = None

    def still(self) -> float:
        """Return the seconds for which nothing moved in the present turn; 0 between turns."""
        began = self._began
        return 0.0 if began is None else self._clock() - max(began, self._last_moved())

    def _watch(self) -> None:
        cancelled = told = False
        while True:
            self._sleep(min(1.0, self._patience / 20, self._grace / 4))
            still = self.still()
            if told != (still > _ALARM * self._patience):
                told = not told
                self._tell(still if told else 0.0)
            if still < self._patience:
                cancelled = False
            elif not cancelled:
                self._cancel()
                cancelled = True
            elif still > self._patience + self._grace:
                self._end(still)
                return
