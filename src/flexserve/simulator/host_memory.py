"""The memory of a simulated Linux host: others' own memory, the page cache that their files are in, and ours.

The page cache counts as available and is what grants take first, as on Linux. What that costs shows
as refaults: pages that others read back after the OS dropped them. A program that waits for such a
read does nothing else, so the part of its work that it still does follows from the part of its files
that is cached.

What is simplified: the pages of a working set are used alike often (of a skewed one, less would be
lost), the OS drops pages at random, and a program that allocates faster than memory comes free waits
for it and is never killed.
"""

from __future__ import annotations

import dataclasses
import math

from flexserve.platforms.ports import MemorySample
from flexserve.simulator.dram import Dram
from flexserve.simulator.events import Simulation
from flexserve.units import GIB, MIB

_RESERVE = 64 * MIB  # bytes that the OS keeps free of cache
_STALL_WINDOW = 10.0  # seconds that PSI "avg10" averages over
_ALLOCATION = GIB  # bytes a second that a program takes from the OS at most
_NOISE = 4 * MIB  # bytes; lacking less than that is none


@dataclasses.dataclass(frozen=True, slots=True)
class Others:
    """What other programs want: `own` bytes of memory, and files that one of them works on.

    `files`: bytes that it uses again and again, `speed` bytes of them a second when all are cached. A byte
    that is not costs 1 / `disk` seconds.
    """

    own: int = 0
    files: int = 0
    speed: float = 200e6
    disk: float = 100e6


@dataclasses.dataclass(slots=True)
class Cost:
    """What others lost to us so far. Times in seconds, `kept` in bytes × seconds."""

    worked: float = 0.0  # that their work took beside us …
    alone: float = 0.0  # … and that the same work would have taken without us
    kept: float = 0.0  # memory that we held while they lacked as much
    held: float = 0.0  # memory that we held at all
    seconds: float = 0.0

    @property
    def slowdown(self) -> float:
        """How much longer others' work took: 0.01 is one per cent."""
        return self.worked / self.alone - 1 if self.alone else 0.0


class PageCache:
    """The files of one program in the memory that nobody else uses."""

    def __init__(self) -> None:
        self.size = 0.0  # bytes
        self.refaulted = 0.0  # bytes that were read back since the start
        self.waiting = 0.0  # part of its time that the program waited for those, lately
        self._known = 0.0  # bytes that were cached once: reading one of them again is a refault

    def run(self, others: Others, room: float, seconds: float) -> float:
        """Let the program work beside `room` bytes for its files; return the part of full speed.

        Room that shrank since the last call takes cached pages with it.
        """
        files, self.waiting = float(others.files), 0.0
        capacity = max(0.0, min(files, room))
        self.size, self._known = min(self.size, capacity), min(self._known, files)
        absent = files - self.size
        if absent <= 0 or not others.speed:
            return 1.0
        part = 1 / (1 + absent / files * others.speed / others.disk)
        read = part * others.speed * absent / files * seconds
        again = max(0.0, self._known - self.size) / absent
        if capacity >= files:  # what is read stays, so nothing is read twice
            read = absent * -math.expm1(-read / absent)
        self.waiting = (1 - part) * again
        self.refaulted += read * again
        self.size = min(capacity, self.size + read)
        self._known = min(files, self._known + read * (1 - again))
        return part


class HostMemory(Dram):
    """Memory shared by models and others, which use it as `simulation` goes on."""

    def __init__(self, simulation: Simulation, total: int, chunk: int) -> None:
        super().__init__(total, 0, chunk)
        self.cost = Cost()
        self._simulation = simulation
        self._others = Others()
        self._wanted = 0.0  # bytes of their own that they have asked the OS for
        self._cache, self._alone = PageCache(), PageCache()
        self._stall = 0.0  # the part of the last ten seconds in which a program waited for memory
        self._then = 0.0

    @property
    def free(self) -> int:
        """Bytes that nobody uses, not even as cache."""
        return max(0, self.available - int(self._cache.size))

    def want(self, others: Others) -> None:
        """Let others want this from now on. They get as much as is left, and the rest as it comes free."""
        self._advance()
        self._others = others
        self._wanted = min(self._wanted, others.own)

    def take(self, count: int) -> list[int]:
        """Make `count` chunks secure, as Dram does."""
        self._advance()
        return super().take(count)

    def give(self, pages: list[int]) -> None:
        """Give chunks back to the normal world."""
        self._advance()
        super().give(pages)

    def sample(self) -> MemorySample:
        """Return what the OS says now."""
        self._advance()
        return MemorySample(
            total=self.total,
            available=max(0, self.available),
            stall=100 * self._stall,
            free=self.free,
            refaulted=int(self._cache.refaulted),
        )

    def _advance(self) -> None:
        """Let others work until now, and add up what they lack because of us."""
        seconds, self._then = self._simulation.now - self._then, self._simulation.now
        if seconds <= 0:
            return
        others, cost = self._others, self.cost
        self._wanted = min(others.own, self._wanted + _ALLOCATION * seconds)
        self.background = min(int(self._wanted), self.total - self.secure)
        lacking = self._wanted - self.background
        part = self._cache.run(others, self.available - _RESERVE, seconds)
        alone = self._alone.run(others, self.total - self._wanted - _RESERVE, seconds)
        waiting = self._cache.waiting
        if lacking > _NOISE:  # who allocates waits, and does nothing else
            part, waiting = 0.0, 1.0
        self._stall += (waiting - self._stall) * -math.expm1(-seconds / _STALL_WINDOW)
        if others.files or others.own:
            cost.worked += seconds
            cost.alone += seconds * min(1.0, part / alone)
        lost = lacking + max(0.0, self._alone.size - self._cache.size)
        cost.kept += (min(float(self.secure), lost) if lost > _NOISE else 0.0) * seconds
        cost.held += self.secure * seconds
        cost.seconds += seconds
