"""Secure memory of the simulated machine: a budget of chunks behind bytearrays, deterministic.

Addresses are made up (the same in every run), so only `view` reaches the bytes. Unlike real
memory, a view that outlives the release of its range raises ValueError at its next use instead
of faulting: a use after release is found by the test that commits it.
"""

from __future__ import annotations

import threading
import weakref

from flexserve.errors import GrantRefusedError, InternalError
from flexserve.platforms.ports import Arena, Protection
from flexserve.units import GIB, MIB, align_up, format_size

_FIRST_BASE = 64 * GIB  # anywhere that is not 0 and a multiple of any sensible chunk


class SimSecureMemory:
    """The SecureMemory port over `total` bytes of simulated memory."""

    def __init__(self, total: int, chunk: int = MIB) -> None:
        if chunk <= 0 or chunk & (chunk - 1):
            raise ValueError("a chunk is a power of two")
        self.chunk = chunk
        self._total = total
        self._used = 0  # what is parked included
        self._parked = 0
        self._next_base = _FIRST_BASE
        self._bytes: dict[Arena, bytearray] = {}
        self._views: dict[Arena, list[_LentView]] = {}
        self._lock = threading.Lock()

    @property
    def protection(self) -> Protection:
        """The label of what this memory is protected by."""
        return Protection(
            name="sim",
            protected=False,
            summary="Simulated memory: numbers from a model, no protection of anything.",
        )

    def reserve(self, size: int) -> Arena:
        """Reserve made-up addresses for `size` bytes, rounded up to chunks. Uses no budget."""
        size = align_up(max(size, 1), self.chunk)
        with self._lock:
            arena = Arena(base=self._next_base, size=size)
            self._next_base = align_up(arena.base + size + 1, max(self.chunk, MIB))  # a gap between arenas
            self._bytes[arena] = bytearray(size)
            self._views[arena] = []
        return arena

    def commit(self, arena: Arena, offset: int, length: int) -> None:  # noqa: ARG002
        """Take `length` bytes, parked ones first, of the budget for a range; it reads as zeros.

        Raises GrantRefusedError past the budget; then every chunk is as it was.
        """
        with self._lock:
            moved = min(self._parked, length)
            self._take(length - moved)
            self._parked -= moved

    def release(self, arena: Arena, offset: int, length: int, *, keep: bool = False) -> None:
        """Scrub a committed range and give it back to the budget, or with `keep` park it; its views die.

        Raises InternalError while someone still holds a buffer on a view of it; then nothing has changed.
        """
        self._kill_views(arena, offset, offset + length)
        self._scrub(arena, offset, length)
        with self._lock:
            if keep:
                self._parked += length
            else:
                self._take(-length)

    def trim(self, kept: int) -> None:
        """Give what is parked beyond `kept` bytes back to the budget."""
        with self._lock:
            excess = max(0, self._parked - kept)
            self._take(-excess)
            self._parked -= excess

    def ready(self) -> int:
        """Return the bytes that are parked."""
        return self._parked

    def view(self, arena: Arena, offset: int, length: int) -> memoryview:
        """Return a writable view of committed memory (any alignment). It dies with the release."""
        view = memoryview(self._bytes[arena])[offset : offset + length]
        with self._lock:
            lent = [entry for entry in self._views[arena] if entry.alive()]
            lent.append(_LentView(view, offset, offset + length))
            self._views[arena] = lent
        return view

    def free(self, arena: Arena) -> None:
        """Give the addresses back. The arena is dead after."""
        with self._lock:
            del self._bytes[arena], self._views[arena]

    def resident(self) -> int:
        """Return the bytes of the budget in use: the simulated machine backs what is committed."""
        return self._used

    def _take(self, length: int) -> None:
        """Take bytes of the budget, under the lock."""
        if self._used + length > self._total:
            raise GrantRefusedError(
                f"The simulated machine has {format_size(self._total - self._used)} left, "
                f"not {format_size(length)}.",
                hint="Release memory first, or simulate a larger machine.",
            )
        self._used += length

    def _scrub(self, arena: Arena, offset: int, length: int) -> None:
        data, zeros = self._bytes[arena], bytes(self.chunk)
        for start in range(offset, offset + length, self.chunk):
            data[start : start + self.chunk] = zeros

    def _kill_views(self, arena: Arena, start: int, end: int) -> None:
        with self._lock:
            for lent in self._views[arena]:
                if lent.start < end and start < lent.end:
                    lent.kill()


class _LentView:
    """A view that someone was given of bytes [start, end) of an arena; does not keep it alive."""

    __slots__ = ("_view", "end", "start")

    def __init__(self, view: memoryview, start: int, end: int) -> None:
        self._view = weakref.ref(view)
        self.start = start
        self.end = end

    def alive(self) -> bool:
        """Return whether anyone still holds the view."""
        return self._view() is not None

    def kill(self) -> None:
        """Make every further use of the view raise ValueError."""
        view = self._view()
        if view is None:
            return
        try:
            view.release()
        except BufferError:
            raise InternalError("Memory was released while a buffer on it was in use.") from None
