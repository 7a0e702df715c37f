"""The gate between two slices of a graph: compute passes through, a recall holds it shut.

Compute holds the gate only while a slice runs; a recall waits at most for that slice, takes
what it needs, and lets compute go on (law 4). A recall that waits goes before the next slice.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Gate:
    """Mutual exclusion of slices and recalls in which waiting recalls have precedence."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._computing = False
        self._recalls = 0  # waiting or inside

    @contextlib.contextmanager
    def slice(self) -> Iterator[None]:
        """Hold the gate for one slice of compute (one thread at a time)."""
        with self._changed:
            while self._recalls:
                self._changed.wait()
            self._computing = True
        try:
            yield
        finally:
            with self._changed:
                self._computing = False
                self._changed.notify_all()

    @contextlib.contextmanager
    def shut(self, timeout: float) -> Iterator[bool]:
        """Keep compute between slices; yields False when that took longer than `timeout` seconds."""
        with self._changed:
            self._recalls += 1
            shut = self._changed.wait_for(lambda: not self._computing, timeout)
        try:
            yield shut
        finally:
            with self._changed:
                self._recalls -= 1
                self._changed.notify_all()
