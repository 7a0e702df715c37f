"""The simulated machine's memory: who owns each chunk, and what the others have taken.

The books are flexserve.trusted.memory.ownership itself, so that the simulation is held to the same law
as the real thing. The background load is normal memory that somebody uses.
"""

from __future__ import annotations

from flexserve.errors import GrantRefusedError
from flexserve.platforms.ports import MemorySample
from flexserve.trusted.memory.ownership import OwnershipTable, PageEvent, PageState
from flexserve.units import MIB, format_size


class Dram:
    """`total` bytes in chunks, `background` of which others use."""

    def __init__(self, total: int, background: int, chunk: int = 32 * MIB) -> None:
        self.chunk = chunk
        self.background = background  # bytes; may be set at any time
        self._table = OwnershipTable(total // chunk)
        self.total = self._table.total * chunk  # bytes of memory
        self.secure = 0  # bytes that only the secure world can reach
        self._normal = list(range(self._table.total))  # numbers of chunks that are NORMAL

    @property
    def available(self) -> int:
        """Bytes that nobody uses. Negative while a load that grew waits for a recall."""
        return self.total - self.background - self.secure

    def sample(self) -> MemorySample:
        """Return what the OS would see."""
        return MemorySample(total=self.total, available=max(0, self.available), stall=None)

    def take(self, count: int) -> list[int]:
        """Make `count` chunks secure and return their numbers.

        Raises GrantRefusedError when so many are not free, and then changes nothing.
        """
        if count and count * self.chunk > self.available:
            raise GrantRefusedError(
                f"The simulated machine has {format_size(max(0, self.available))} left.",
                hint="Simulate a larger machine, or less background load.",
            )
        pages = [self._normal.pop() for _ in range(count)]
        self._table.apply(PageEvent.GRANT, pages)
        self._table.apply(PageEvent.COMMIT, pages)
        self.secure += count * self.chunk
        return pages

    def give(self, pages: list[int]) -> None:
        """Give chunks back to the normal world."""
        self._table.apply(PageEvent.RECALL, pages)
        self._table.apply(PageEvent.SCRUBBED, pages)
        self.secure -= len(pages) * self.chunk
        self._normal += pages

    def check(self) -> None:
        """Assert that no chunk is lost and that what is listed as normal is."""
        self._table.check()
        assert len(self._normal) == self._table.count(PageState.NORMAL), "the list of normal chunks drifted"
        assert self.secure == self._table.count(PageState.SECURE) * self.chunk, "the sum drifted"
