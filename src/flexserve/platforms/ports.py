"""The ports of a platform. Adapters are named after them and pass the kit in flexserve.testing."""

from __future__ import annotations

import dataclasses
import enum
import threading
from collections.abc import Sequence
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

    base: int  # address in this process, a multiple of the chunk
    size: int  # bytes, a multiple of the chunk


class SecureMemory(Protocol):
    """Memory that the normal world can recall and cannot read.

    An adapter maps and unmaps what it is told, and keeps no account of what is committed. The caller
    (trusted.memory.flexmem) does, and guarantees for every call: the arena came from `reserve` of this
    memory and was not freed; the range lies in it, in bytes that are multiples of `chunk` (those of a view
    may be any); there is memory behind all of a range to release or to view, and behind no part of one to
    commit; and no other thread is in a call on that range. Every method is thread-safe for disjoint ranges.
    Length 0 is always safe.
    """

    @property
    def chunk(self) -> int:
        """Bytes of the unit of commit and release; a power of two, at least one OS page."""

    @property
    def protection(self) -> Protection:
        """The label of what this memory is protected by."""

    def reserve(self, size: int) -> Arena:
        """Reserve addresses for `size` bytes, rounded up to chunks. Uses no memory.

        Raises NormalWorldError when the address space is refused.
        """

    def commit(self, arena: Arena, offset: int, length: int) -> None:
        """Put memory behind a range that has none; it reads as zeros.

        The OS may supply the pages at first touch. Raises GrantRefusedError when the OS
        refuses, and then every chunk is as it was before the call.
        """

    def release(self, arena: Arena, offset: int, length: int, *, keep: bool = False) -> None:
        """Give the memory of a committed range back, scrubbed before anyone can see it.

        Returns when the OS has it. With `keep` as much is about to be committed elsewhere: an adapter
        that can move memory may hold on to it for that, scrubbed. It counts as resident, and is what the
        next commits get, until `trim` gives it back.
        """

    def trim(self, kept: int) -> None:
        """Give what lies ready beyond `kept` bytes to the OS, which has it at once or a moment later.

        Always safe; does not wait for the OS, and touches nothing committed.
        """

    def ready(self) -> int:
        """Return the bytes that lie ready: a commit of so many takes no time to speak of. Always safe."""

    def view(self, arena: Arena, offset: int, length: int) -> memoryview:
        """Return a writable view of committed memory (any alignment). It dies with the release."""

    def free(self, arena: Arena) -> None:
        """Give the addresses of an arena back, of which nothing is committed. It is dead after."""

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


class NpuState(enum.Enum):
    """Whose the NPU is, as the secure world sees it."""

    AWAY = "away"  # the normal world's: it reaches nothing of ours
    COMING = "coming"  # asked for, and not here yet
    HELD = "held"
    LEAVING = "leaving"  # given up or lost; it may still reach what its last job names
    REFUSED = "refused"  # never to be used again: what came is not what was agreed on


@dataclasses.dataclass(frozen=True, slots=True)
class Product:
    """C = A·Bᵀ: C[m, n] = Σ_k A[m, k]·B[n, k], with m < rows, n < columns, k < depth.

    A and B are rows of ggml's q8_0 blocks (32 values: an fp16 scale and 32 int8), C rows of float32, which
    are summed up in float32, block by block. Addresses are of this process, and all that lies between a
    matrix's first byte and its last is committed secure memory; `*_stride` is bytes from row to row.
    """

    rows: int
    columns: int
    depth: int  # a multiple of 32
    a: int
    a_stride: int
    b: int
    b_stride: int
    c: int
    c_stride: int


@dataclasses.dataclass(frozen=True, slots=True)
class NpuLimits:
    """What fits into a job."""

    rows: int
    columns: int
    depth: int
    products: int
    reach: int  # bytes of all matrices of a job together
    place: int  # bytes of secure memory that describe a job, in whole OS pages


class Npu(Protocol):
    """A matrix engine that the normal world owns, and lends. Absent (None) on a platform without one.

    The normal world lends it when it likes and may ask for it back; the one who holds it gives it back
    between two jobs. Its jobs reach secure memory and nothing else. One job at a time; all methods are
    thread-safe and none but `submit` and `wait` takes longer than a message does.
    """

    limits: NpuLimits
    #: Notified when `state` or `wanted_back` changed. Who holds the NPU may protect fields of its own by it.
    changed: threading.Condition

    @property
    def state(self) -> NpuState:
        """Whose it is now. Anything may have happened by the time the caller looks at the answer."""

    @property
    def wanted_back(self) -> float | None:
        """When the normal world wants it back, by time.monotonic(), while HELD; None: it does not."""

    def ask(self) -> None:
        """Ask for it: COMING, and HELD some time or never. Always safe; nothing unless it is AWAY.

        Nothing either, though AWAY, while the normal world itself has not got it back: ask again.
        """

    def submit(self, products: Sequence[Product], place: int) -> None:
        """Begin a job, described in the `limits.place` bytes at address `place`, a whole OS page.

        Until `wait` says True or the state is AWAY or REFUSED, the job may read and write what the
        products and `place` name, so that memory stays as it is and where it is. Raises NpuLostError when
        it is not HELD, or does not take the job; InternalError for a job beyond the limits, or while the
        one before it is not over.
        """

    def wait(self, seconds: float) -> bool:
        """Wait for the end of the job; return whether it is over, all products computed.

        Raises NpuLostError when it failed or was lost: what it was to write holds anything.
        """

    def release(self) -> None:
        """Give it back, or ask for it no more: LEAVING, then AWAY; a job under way is lost.

        Always safe; nothing unless it is HELD or COMING.
        """
