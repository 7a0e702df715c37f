"""The ports of a platform. Adapters are named after them and pass the kit in flexserve.testing."""

from __future__ import annotations

import dataclasses
from typing import Protocol


@dataclasses.dataclass(frozen=True, slots=True)
class Protection:
    """What protects secure memory in this run, and what that does not cover (law 9)."""

    name: str  # "memfd_secret", "plain", "trustzone-emulated", "sim"
    protected: bool  # False: ordinary memory, for trying things out
    summary: str  # one sentence for people: who is kept out, and who is not


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Arena:
    """A reserved range of addresses: `size` bytes from `base`, without memory behind them.

    Compared by identity: two arenas are never the same reservation.
    """

    base: int  # address in this process, a multiple of the granule
    size: int  # bytes, a multiple of the granule


class SecureMemory(Protocol):
    """Memory that the normal world can recall and cannot read.

    All offsets and lengths are bytes and multiples of `granule`. Every method is thread-safe
    for disjoint ranges; callers serialise calls on the same range (secure.flexmem does).
    """

    @property
    def granule(self) -> int:
        """Bytes of the unit of commit and release; a power of two, at least one OS page."""

    @property
    def protection(self) -> Protection:
        """The label of what this memory is protected by."""

    def reserve(self, size: int) -> Arena:
        """Reserve addresses for `size` bytes, rounded up to granules. Uses no memory.

        Raises NormalWorldError when the address space is refused.
        """

    def commit(self, arena: Arena, offset: int, length: int) -> None:
        """Put memory behind a range that has none; it reads as zeros.

        The OS may supply the pages at first touch. Raises GrantRefusedError when the OS
        refuses, and then every granule is as it was before the call. Raises InternalError
        for a range that is outside the arena or (partly) committed already.
        """

    def release(self, arena: Arena, offset: int, length: int, *, keep: bool = False) -> None:
        """Give the memory of a committed range back, scrubbed before anyone can see it.

        Returns when the OS has it. With `keep` as much is about to be committed elsewhere: an adapter
        that can move memory may hold on to it for that, and counts it as resident. Always safe to
        call with length 0. Raises InternalError for a range that is outside the arena or not wholly
        committed, and then changes nothing.
        """

    def view(self, arena: Arena, offset: int, length: int) -> memoryview:
        """Return a writable view of committed memory (any alignment). It dies with the release.

        Raises InternalError when part of it is not committed.
        """

    def free(self, arena: Arena) -> None:
        """Release whatever is committed and give the addresses back. The arena is dead after."""

    def resident(self) -> int:
        """Return the bytes of secure memory that the OS counts as used by this process now."""


@dataclasses.dataclass(frozen=True, slots=True)
class MemorySample:
    """One look at the normal world's memory."""

    total: int  # bytes of RAM
    available: int  # bytes the OS could hand out without swapping
    stall: float | None  # PSI "some avg10" in percent; None where the kernel has no PSI
    free: int | None = None  # bytes nobody uses, not even as cache; None where the OS does not tell
    # Bytes read back soon after the OS had dropped them, counted up for ever; None where it does not tell.
    refaulted: int | None = None


class NormalMemory(Protocol):
    """What the OS has free and how hard it is pressed."""

    def sample(self) -> MemorySample:
        """Return the state of memory now. Raises NormalWorldError when the OS does not tell."""

    def charged(self, pid: int) -> int:
        """Return the bytes that the OS counts as resident for process `pid` (0 if it is gone)."""
