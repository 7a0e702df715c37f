"""Parked chunks: secret memory that the kernel need not allocate again, since it waits for its next place.

The kernel takes twenty microseconds to allocate a page of secret memory, which it also takes out of its own
map. Moving one costs some hundredths of a microsecond, whatever is mapped there. So a chunk that is soon
wanted elsewhere moves into a range of addresses that belongs to no arena, and from there to its next place.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from flexserve.platforms.linux import mman, reservation
from flexserve.units import align_up


class ParkedChunks:
    """A stack of mapped, scrubbed chunks. Thread-safe: its lock is held for as long as chunks move.

    Neither moving nor giving back leaves a hole in the addresses where another thread's mapping could come
    to lie: what a chunk leaves behind stays taken, until a reservation replaces it.
    """

    def __init__(self, chunk: int, most: int) -> None:
        """`most`: bytes that may be parked at a time. Raises NormalWorldError when addresses are refused."""
        self._chunk = chunk
        self._most = align_up(most, chunk) // chunk  # chunks
        self._base = reservation.reserve(self._most * chunk, chunk)
        self._count = 0
        self._lock = threading.Lock()

    def park(self, address: int, length: int) -> None:
        """Take the scrubbed chunks of a mapped range, which is a reservation afterwards.

        Those that the kernel does not move go to the OS. Raises NormalWorldError when it refuses even that;
        the range may be read and written then, and nothing of it is parked.
        """
        with self._lock:
            count = min(length // self._chunk, self._most - self._count)
            moved = self._move(address, self._slot(self._count), count)
            reservation.put_back(address, length)
            self._count += moved

    def take(self, address: int, length: int) -> int:
        """Move chunks to the beginning of a reserved range, as many as there are; return their bytes."""
        with self._lock:
            count = min(length // self._chunk, self._count)
            moved = self._move(self._slot(self._count) - self._chunk, address, count, backwards=True)
            if moved:
                self._count -= moved
                reservation.put_back(self._slot(self._count), moved * self._chunk)
        return moved * self._chunk

    @property
    def size(self) -> int:
        """Bytes that are parked at the moment."""
        return self._count * self._chunk

    def trim(self, kept: int) -> None:
        """Give all but `kept` bytes to the OS."""
        with self._lock:
            excess = self._count - min(self._count, kept // self._chunk)
            if excess:
                reservation.put_back(self._slot(self._count - excess), excess * self._chunk)
                self._count -= excess

    @contextlib.contextmanager
    def still(self) -> Iterator[int]:
        """Keep every chunk where it is inside the block; yields the bytes that the kernel has parked."""
        with self._lock:
            parked = mman.resident_pages(self._base, self._count * self._chunk) if self._count else b""
            yield parked.count(1) * mman.PAGE

    def _slot(self, index: int) -> int:
        return self._base + index * self._chunk

    def _move(self, source: int, target: int, count: int, *, backwards: bool = False) -> int:
        """Move `count` chunks, `backwards` from `source` down, to `target`; return how many did move."""
        step = -self._chunk if backwards else self._chunk
        for index in range(count):
            try:  # one by one: each is a mapping of its own
                mman.move(source + index * step, self._chunk, target + index * self._chunk)
            except OSError:
                return index
        return count
