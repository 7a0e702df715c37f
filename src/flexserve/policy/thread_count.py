"""How many threads compute, on a machine whose cores others use, too. Pure: time is passed in.

Threads meet after each node of a graph, hundreds of times a token, so one that waits for its core holds up
all the others; these spin meanwhile, and so keep cores from it. Beside one busy program, two threads on two
cores decode up to a hundred times more slowly than one does alone.

How long threads were without a core is exact (wall time less CPU time, as they spin while they wait for each
other), and costs nothing to look at. So all threads compute until much is lost. A hypervisor or an interrupt
takes a core for some milliseconds, too, so a trial of short slices then has to lose as much: from then on
there are fewer threads, by the cores that others turned out to use, and after a pause all are given a trial
again. When cores are in use soon after a pause, the next one is longer.
"""

from __future__ import annotations

_WINDOW = 0.05  # seconds of compute over which it is judged
_LOST = 0.25  # cores that others may use before there had better be fewer threads
_SHORTEST, _LONGEST = 0.25, 4.0  # seconds of a pause


class ThreadCount:
    """Decides on the number of threads, `most` at most. `now`: seconds of any clock."""

    def __init__(self, most: int) -> None:
        self._most = self.count = most
        self.trial = False  # whether cores may turn out to be in use: slices of compute should be short
        self._wall = self._lost = 0.0  # seconds of time, and of all threads, in the window under way
        self._pause = _SHORTEST
        self._resume = float("-inf")  # when the pause is over

    def begin(self, now: float) -> None:
        """Settle `count` and `trial` for the slice of compute that begins."""
        if self.count < self._most and not self.trial and now >= self._resume:
            self._change(self._most, trial=True)

    def computed(self, wall: float, lost: float, now: float) -> None:
        """Record a slice of `wall` seconds in which all threads lacked a core for `lost` seconds together."""
        self._wall += wall
        self._lost += lost
        if self.count > 1 and self._lost >= _LOST * max(self._wall, _WINDOW):
            if self.trial:
                self._reduce(now)
            else:
                self._change(self.count, trial=True)
        elif self._wall >= _WINDOW:
            self._change(self.count)

    def _reduce(self, now: float) -> None:
        if self.count == self._most:
            again = now < self._resume + _LONGEST
            self._pause = min(2 * self._pause, _LONGEST) if again else _SHORTEST
            self._resume = now + self._pause
        used = self._lost / self._wall if self._wall > 0 else self.count  # cores that others have
        self._change(max(1, int(self.count - used)))

    def _change(self, count: int, *, trial: bool = False) -> None:
        self.count, self.trial = count, trial
        self._wall = self._lost = 0.0
