"""What the kernel of a machine asks for by itself: a demand that comes before the last was met joins it."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable

from flexserve.protocol.memory import Recall

_LONGEST_DEADLINE = 10.0  # seconds; what the OS says beyond it, it does not mean
_EVERYTHING = 10.0  # seconds for running requests to end when the OS wants all of its memory
_PAUSE = 0.1
_REASON = "the guest's kernel needed it"

Later = Callable[[Callable[[], None]], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Demand:
    """So many bytes, within so many seconds."""

    size: int
    seconds: float


class Demands:
    """Meets what a machine's kernel asks for. Thread-safe.

    `most`: bytes of all its memory. `held` returns the bytes that it lacks, `return_unused` gives back those
    that nobody uses, `recall` gives up others. `later` has what it is given called, one thing at a time.
    """

    def __init__(
        self,
        *,
        most: int,
        held: Callable[[], int],
        return_unused: Callable[[], int],
        recall: Callable[[Recall], object],
        later: Later,
        close_idle: Callable[[], None] = lambda: None,
    ) -> None:
        """`close_idle` has models closed that nobody uses, where opening one took memory of the OS."""
        self._most, self._held, self._return_unused = most, held, return_unused
        self._recall, self._later, self._close_idle = recall, later, close_idle
        self._lock = threading.Lock()
        self.asked: Demand | None = None  # and not yet met

    def press(self, size: int, seconds: float) -> None:
        """Record a demand. One that comes before the last was met is the same one, grown or more urgent."""
        with self._lock:
            before = self.asked
            if before is not None:
                size, seconds = max(size, before.size), min(seconds, before.seconds)
            self.asked = Demand(size, seconds)
        if before is None:
            self._later(self._relieve)

    def want_everything(self) -> None:
        """Have all given back that running requests let go of in time."""
        self._later(self._give_everything)

    def _relieve(self) -> None:
        with self._lock:
            asked, self.asked = self.asked, None
        if asked is not None:
            self._give(min(asked.size, self._most), min(asked.seconds, _LONGEST_DEADLINE))

    def _give_everything(self) -> None:
        """Give until nothing is left, or running requests hold on for too long."""
        end = time.monotonic() + _EVERYTHING
        self._give(self._most, _LONGEST_DEADLINE)
        self._close_idle()
        while self._held() and time.monotonic() < end:
            self._give(self._most, _LONGEST_DEADLINE)
            time.sleep(_PAUSE)

    def _give(self, size: int, seconds: float) -> None:
        """Give `size` bytes: first what is granted and unused, whose pages the OS gets as they are."""
        size -= self._return_unused()
        if size > 0:
            self._recall(Recall(serial=0, demand=size, deadline=seconds * 1000, reason=_REASON))
