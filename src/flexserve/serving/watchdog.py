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

PATIENCE = 600.0  # seconds; a slice takes 50 ms, one that has to wait for all of a model's weights a minute
_ALARM = 0.2  # of the patience, after which others are told
GRACE = 10.0  # seconds between the attempt to cancel and the end, or less: no more than the patience


class Watchdog:
    """Calls `cancel` when nothing moved for `patience` seconds of a turn, and `end` when that did not help.

    Long before, `tell` hears for how many seconds nothing moved, and 0 when something does again.
    `turn` is the engine thread's; `moved` may be called from any thread, and costs next to nothing.
    `clock` gives seconds.
    """

    def __init__(
        self,
        tell: Callable[[float], None],
        cancel: Callable[[], None],
        end: Callable[[float], None],
        *,
        patience: float,
        grace: float = GRACE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell, self._cancel, self._end = tell, cancel, end
        self._patience, self._grace, self._clock = patience, min(grace, patience), clock
        self._last: float | None = None  # when something moved (the clock's seconds); None: between turns
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Watch what happens inside the block."""
        self._last = self._clock()
        try:
            yield
        finally:
            self._last = None

    def moved(self) -> None:
        """Note that the turn gets on."""
        if self._last is not None:
            self._last = self._clock()

    def still(self) -> float:
        """Return the seconds for which nothing moved in the present turn; 0 between turns."""
        last = self._last
        return 0.0 if last is None else self._clock() - last

    def _watch(self) -> None:
        cancelled = told = False
        while True:
            time.sleep(min(1.0, self._patience / 20, self._grace / 4))
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
