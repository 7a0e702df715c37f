"""Virtual time: processes that sleep, wait for signals and use units. Deterministic, no threads.

A process is a generator. It yields seconds to sleep or a `Signal` to wait for, and goes on when
that is over. What happens at the same instant happens in the order in which it was caused.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Generator

Process = Generator["float | Signal", None, None]


class Simulation:
    """The clock and what is to happen next."""

    def __init__(self) -> None:
        self.now = 0.0  # seconds
        self.events = 0  # that have happened
        self._order = itertools.count()
        self._agenda: list[tuple[float, int, Process]] = []

    def spawn(self, process: Process) -> None:
        """Let `process` begin now, after what is already to happen now."""
        heapq.heappush(self._agenda, (self.now, next(self._order), process))

    def run(self, until: float = float("inf")) -> None:
        """Let everything happen that happens up to `until` seconds; without it, until nothing is left."""
        while self._agenda and self._agenda[0][0] <= until:
            self.step()
        if until != float("inf"):
            self.now = max(self.now, until)

    def step(self) -> None:
        """Let the next thing happen. Raises IndexError when nothing is left to do."""
        self.now, _, process = heapq.heappop(self._agenda)
        self.events += 1
        self._advance(process)

    def _advance(self, process: Process) -> None:
        try:
            wait = next(process)
        except StopIteration:
            return
        if isinstance(wait, Signal):
            wait.add(process)
        else:
            assert wait >= 0, "time does not run backwards"
            heapq.heappush(self._agenda, (self.now + wait, next(self._order), process))


class Signal:
    """Something to wait for. Fires any number of times; each time all who wait go on."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._waiting: list[Process] = []

    def add(self, process: Process) -> None:
        """Let `process` go on when this fires next."""
        self._waiting.append(process)

    def fire(self) -> None:
        """Let all who wait go on, in the order in which they came."""
        waiting, self._waiting = self._waiting, []
        for process in waiting:
            self._simulation.spawn(process)


class Unit:
    """A part of the machine that does one thing at a time, first come, first served."""

    def __init__(self, simulation: Simulation) -> None:
        self.busy = 0.0  # seconds of work done, or begun
        self._simulation = simulation
        self._free_at = 0.0

    def use(self, seconds: float) -> Process:
        """Wait for the unit's turn, then work on it for `seconds`."""
        now = self._simulation.now
        self._free_at = max(self._free_at, now) + seconds
        self.busy += seconds
        yield self._free_at - now
