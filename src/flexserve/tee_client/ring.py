"""A wire in memory that is shared with the application, as trusted-app/ring.h has it."""

from __future__ import annotations

from collections.abc import Callable

from flexserve.platforms.trustzone.ram import PAGE
from flexserve.tee_client.messages import broken

_STRIDE = 64  # bytes from one count to the next
_MODULUS = 1 << 32

REQUESTS_WRITTEN, REQUESTS_READ, ANSWERS_WRITTEN, ANSWERS_READ = range(4)


class Ring:
    """Two streams of bytes. One thread writes, one reads.

    The application may write anywhere in the memory. So our own counts are kept here, too, and of its counts
    one that goes backwards, or further than there is room for, raises PeerError.
    """

    def __init__(
        self, memory: memoryview, rest: Callable[[], None], told: Callable[[], None] = lambda: None
    ) -> None:
        """`memory`: three pages at least, whose counts are 0, or as the last one who used it left them.

        `rest` is called when nothing moved: it waits a moment, or raises PeerError or MachineGoneError when
        nothing will move any more. `told` is called after each request: the application looks by itself, too,
        but later.
        """
        if len(memory) < 3 * PAGE:
            raise ValueError("a ring has three pages at least")
        self._memory, self._rest, self._told = memory, rest, told
        self.area = 1 << ((len(memory) - PAGE) // 2).bit_length() - 1  # bytes of each stream
        self._counts = [self._count(number) for number in range(4)]  # as they were seen last

    def write(self, data: bytes) -> None:
        """Write all of `data`, as there is room. Raises PeerError, and what `rest` raises."""
        while data:
            written = self._counts[REQUESTS_WRITTEN]
            waiting = self._distance(REQUESTS_READ, written)
            at = written % self.area
            part = data[: min(self.area - waiting, self.area - at)]
            if part:
                self._memory[PAGE + at : PAGE + at + len(part)] = part
                self._set(REQUESTS_WRITTEN, written + len(part))
                data = data[len(part) :]
            else:
                self._rest()
        self._told()

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, waiting for them. Raises as `write`."""
        parts = []
        while size:
            read = self._counts[ANSWERS_READ]
            at = read % self.area
            first = PAGE + self.area + at
            part = self._memory[first : first + min(self._there(read), self.area - at, size)].tobytes()
            if part:
                self._set(ANSWERS_READ, read + len(part))
                parts.append(part)
                size -= len(part)
            else:
                self._rest()
        return b"".join(parts)

    def _distance(self, number: int, written: int) -> int:
        """Return how many bytes that were written the application has not read."""
        before, now = self._counts[number], self._count(number)
        if (now - before) % _MODULUS > (written - before) % _MODULUS:
            raise broken("it read what was not written")
        self._counts[number] = now
        return (written - now) % _MODULUS

    def _there(self, read: int) -> int:
        """Return how many bytes there are to read."""
        before, now = self._counts[ANSWERS_WRITTEN], self._count(ANSWERS_WRITTEN)
        there = (now - read) % _MODULUS
        if there > self.area or there < (before - read) % _MODULUS:
            raise broken("it wrote where there is no room, or took back what it wrote")
        self._counts[ANSWERS_WRITTEN] = now
        return there

    def _count(self, number: int) -> int:
        return int.from_bytes(self._memory[_STRIDE * number : _STRIDE * number + 4], "little")

    def _set(self, number: int, value: int) -> None:
        self._counts[number] = value % _MODULUS
        self._memory[_STRIDE * number : _STRIDE * number + 4] = self._counts[number].to_bytes(4, "little")
