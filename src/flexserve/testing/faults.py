"""Adapters that misbehave on purpose, by wrapping one that does not."""

from __future__ import annotations

from flexserve.errors import GrantRefusedError
from flexserve.platforms.ports import Arena, Protection, SecureMemory


class Refusing:
    """A SecureMemory whose OS grants `after` commits and refuses every one that follows.

    `after` may be assigned at any time: it counts down with each commit granted.
    """

    def __init__(self, memory: SecureMemory, *, after: int) -> None:
        self._memory = memory
        self.after = after

    @property
    def chunk(self) -> int:
        """Bytes of the unit of commit and release."""
        return self._memory.chunk

    @property
    def protection(self) -> Protection:
        """The label of the wrapped memory."""
        return self._memory.protection

    def reserve(self, size: int) -> Arena:
        """Reserve addresses in the wrapped memory."""
        return self._memory.reserve(size)

    def commit(self, arena: Arena, offset: int, length: int) -> None:
        """Commit, or raise GrantRefusedError and change nothing."""
        if self.after <= 0:
            raise GrantRefusedError("The OS refused memory (injected).", hint="Expect this in a test.")
        self._memory.commit(arena, offset, length)
        self.after -= 1

    def release(self, arena: Arena, offset: int, length: int, *, keep: bool = False) -> None:
        """Release in the wrapped memory."""
        self._memory.release(arena, offset, length, keep=keep)

    def trim(self, kept: int) -> None:
        """Trim the wrapped memory."""
        self._memory.trim(kept)

    def ready(self) -> int:
        """Return what lies ready in the wrapped memory."""
        return self._memory.ready()

    def view(self, arena: Arena, offset: int, length: int) -> memoryview:
        """Return a view of the wrapped memory."""
        return self._memory.view(arena, offset, length)

    def free(self, arena: Arena) -> None:
        """Free an arena of the wrapped memory."""
        self._memory.free(arena)

    def resident(self) -> int:
        """Return what the wrapped memory counts."""
        return self._memory.resident()
