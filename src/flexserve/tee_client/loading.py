"""Weights that are brought in ahead of need, beside what computes."""

from __future__ import annotations

import threading

from flexserve.errors import FlexServeError
from flexserve.tee_client.memory import Memory
from flexserve.tee_client.weights import Weights

_PAUSE = 0.1  # seconds between two looks at whether a request has what was kept for it


class Loading:
    """At most one is under way. Any thread."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self._ended = threading.Event()  # of the latest one
        self._thread: threading.Thread | None = None

    @property
    def under_way(self) -> bool:
        """Whether something is brought in."""
        thread = self._thread
        return thread is not None and thread.is_alive() and not self._ended.is_set()

    def begin(self, weights: Weights, count: int) -> None:
        """Bring in the first `count` chunks, as far as there is memory; what was under way ends."""
        with self._lock:
            self._ended.set()
            self._ended = threading.Event()
            self._thread = threading.Thread(
                target=self._work, args=(weights, count, self._ended), name="loading", daemon=True
            )
            self._thread.start()

    def end(self) -> None:
        """End it: a chunk that is on its way comes yet. Always safe."""
        self._ended.set()

    def _work(self, weights: Weights, count: int, ended: threading.Event) -> None:
        while not ended.is_set():
            if not self._memory.wait_until_free(_PAUSE):
                continue
            try:
                if not weights.load_next(count):
                    return
            except FlexServeError:  # who needs them hears of it
                return
