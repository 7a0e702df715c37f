"""A lock that threads hold in the order in which they asked for it."""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Iterator


class Turns:
    """Held by one thread at a time, as often as it likes. An ordinary lock may starve who waits."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: collections.deque[object] = collections.deque()
        self._holder: int | None = None  # a thread

    @contextlib.contextmanager
    def taken(self, within: float | None = None) -> Iterator[bool]:
        """Hold it inside the block; False: it was not to be had `within` seconds (None: wait)."""
        own = threading.get_ident()
        again = self._holder == own
        had = again or self._take(own, within)
        try:
            yield had
        finally:
            if had and not again:
                with self._changed:
                    self._holder = None
                    self._changed.notify_all()

    def _take(self, own: int, within: float | None) -> bool:
        place = object()
        with self._changed:
            self._waiting.append(place)
            had = self._changed.wait_for(lambda: self._is_next(place), within)
            self._waiting.remove(place)
            if had:
                self._holder = own
            else:
                self._changed.notify_all()
        return had

    def _is_next(self, place: object) -> bool:
        return self._holder is None and self._waiting[0] is place
