"""The NPU's own part of Flex-Mem: what describes a job, what goes into it and what comes out."""

from __future__ import annotations

from flexserve.trusted.memory.flexmem import FlexMem
from flexserve.units import MIB, align_up

_ADDRESSES = 256 * MIB
_MOST_RESULTS = 8 * MIB
_PAGE = 4096


class JobMemory:
    """One arena: a job's description, then quantized activations, then results."""

    def __init__(self, flexmem: FlexMem, place: int) -> None:
        self._flexmem = flexmem
        self._arena = flexmem.reserve(_ADDRESSES)
        self.place = self._arena.base
        self.activations = self._arena.base + align_up(place, _PAGE)
        self.results = self.activations
        self.room = 0  # bytes for results

    @property
    def committed(self) -> int:
        """Bytes that have memory: the arena's first ones."""
        return self._flexmem.committed(self._arena)

    def provide(self, *, activations: int, results: int) -> None:
        """Have room for `activations` bytes, and for `results` or as much as is good for a job.

        Not while a job may write to what is there. Raises GrantRefusedError, with all as it was.
        """
        start = self.activations + align_up(activations, _PAGE)
        room = min(results, _MOST_RESULTS)
        size = align_up(start + room - self._arena.base, self._flexmem.chunk)
        if size > self._arena.size:
            raise ValueError("activations larger than any batch has them")
        have = self.committed
        if size > have:
            self._flexmem.commit(self._arena, have, size - have)
        self.results, self.room = start, room

    def release(self, *, keep_grants: bool = False) -> int:
        """Give all of it up; return the bytes."""
        self.room = 0
        give_up = self._flexmem.recycle_all if keep_grants else self._flexmem.release_all
        return give_up(self._arena)

    def free(self) -> int:
        """Give it up with its addresses; return the bytes."""
        return self._flexmem.free(self._arena)
