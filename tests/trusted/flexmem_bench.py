"""A Flex-Mem over simulated memory, and a normal world that counts what it grants."""

from __future__ import annotations

from collections.abc import Callable

from flexserve.errors import GrantRefusedError
from flexserve.platforms.ports import Arena
from flexserve.simulator.secure_memory import SimSecureMemory
from flexserve.trusted.heartbeat import Heartbeat
from flexserve.trusted.memory.flexmem import FlexMem
from flexserve.trusted.memory.ownership import PageState

CHUNK = 4096
TOTAL = 12  # chunks of the simulated machine
ARENA = 6  # chunks


class Purse:
    """A normal world that grants up to `limit` chunks at any one time and remembers all it is told."""

    def __init__(self, limit: int = TOTAL) -> None:
        self.limit = limit
        self.out = 0  # chunks granted and not returned
        self.asked: list[tuple[int, int]] = []  # chunks: (size, minimum)

    def request(self, size: int, minimum: int) -> int:
        self.asked.append((size // CHUNK, minimum // CHUNK))
        granted = min(size // CHUNK, max(0, self.limit - self.out))
        self.out += granted
        return granted * CHUNK

    def returned(self, size: int, reason: str = "") -> None:
        self.out -= size // CHUNK


class Memory(SimSecureMemory):
    """Simulated memory whose OS may refuse."""

    refuses = False

    def commit(self, arena: Arena, offset: int, length: int) -> None:
        if self.refuses:
            raise GrantRefusedError("The OS refused memory (injected).", hint="Expect this in a test.")
        super().commit(arena, offset, length)


class Bench:
    """A Flex-Mem over simulated memory, with one arena."""

    def __init__(self, limit: int = TOTAL, capacity: int = TOTAL, machine: int = TOTAL) -> None:
        self.memory = Memory(machine * CHUNK, CHUNK)
        self.purse = Purse(limit)
        self.heartbeat = Heartbeat()
        self.flexmem = FlexMem(self.memory, capacity * CHUNK, self.purse, self.heartbeat)
        self.arena = self.flexmem.reserve(ARENA * CHUNK)

    def counts(self, ready: int = 0) -> tuple[int, int]:
        """Return chunks (granted and unused, in use), once all accounts were seen to agree.

        `ready`: chunks of the unused ones that the OS counts as ours.
        """
        self.flexmem.check()
        granted, secure, recalling = (
            self.flexmem.bytes_in(state) // CHUNK
            for state in (PageState.GRANTED, PageState.SECURE, PageState.RECALLING)
        )
        assert recalling == 0
        assert self.flexmem.resident() == (secure + ready) * CHUNK
        return granted, secure

    def commit(self, first: int, count: int) -> None:
        self.flexmem.commit(self.arena, first * CHUNK, count * CHUNK)

    def release(self, first: int, count: int) -> int:
        """Release and report, as every caller does; return the chunks."""
        size = self.flexmem.release(self.arena, first * CHUNK, count * CHUNK)
        self.flexmem.report_returned(size)
        return size // CHUNK


class Watched(SimSecureMemory):
    """Calls `meanwhile` in the middle of each commit and release; remembers what was released, in chunks."""

    def __init__(self, total: int, chunk: int) -> None:
        super().__init__(total, chunk)
        self.meanwhile: Callable[[], None] = lambda: None
        self.released: list[tuple[int, int]] = []

    def commit(self, arena: Arena, offset: int, length: int) -> None:
        self.meanwhile()
        super().commit(arena, offset, length)

    def release(self, arena: Arena, offset: int, length: int, *, keep: bool = False) -> None:
        self.meanwhile()
        self.released.append((offset // CHUNK, length // CHUNK))
        super().release(arena, offset, length, keep=keep)
