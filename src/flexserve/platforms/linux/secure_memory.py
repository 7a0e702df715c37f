"""Recallable memory on Linux: `memfd_secret`, and ordinary memory in the same shape.

An arena is a PROT_NONE reservation. Commit maps memory over part of it, release maps PROT_NONE
over that part again, so addresses stay put while memory comes and goes.

Secret memory cannot be given back in part: no hole punching, no MADV_DONTNEED, one ftruncate
per file. So each chunk is its own `memfd_secret`, whose descriptor is closed as soon as it is
mapped; unmapping the chunk then drops the last reference, and the kernel frees its pages. What is
released to be committed elsewhere is parked instead, and moves (platforms.linux.parked_chunks).
"""

from __future__ import annotations

import abc
import contextlib
import errno
import os
import re
import resource
from pathlib import Path

from flexserve.errors import GrantRefusedError, NormalWorldError
from flexserve.platforms.linux import mman, reservation
from flexserve.platforms.linux.parked_chunks import ParkedChunks
from flexserve.platforms.ports import Arena, Protection
from flexserve.units import MIB, align_up, format_size

DEFAULT_CHUNK = MIB
_READ_WRITE = mman.PROT_READ | mman.PROT_WRITE
_MAPPINGS_OF_OTHERS = 2048  # libraries, stacks, heaps: generous for a Python process
LIFT_LOCK_LIMIT = "Let this shell lock more (`sudo prlimit --pid $$ --memlock=unlimited:unlimited`)."
_RESIDENT_RUN = re.compile(rb"\x01+")
_RAM = os.sysconf("SC_PHYS_PAGES") * mman.PAGE  # now: a sandbox may not let the C library look


class _MappedMemory(abc.ABC):
    """The SecureMemory port over mmap; subclasses say what is mapped and how it is scrubbed."""

    def __init__(self, chunk: int = DEFAULT_CHUNK) -> None:
        if chunk <= 0 or chunk % mman.PAGE or chunk & (chunk - 1):
            raise ValueError("a chunk is whole pages, and a power of two")
        self.chunk = chunk
        self._arenas: dict[Arena, None] = {}  # the live ones, to be counted

    @property
    @abc.abstractmethod
    def protection(self) -> Protection:
        """The label of what this memory is protected by."""

    def reserve(self, size: int) -> Arena:
        """Reserve addresses for `size` bytes, rounded up to chunks. Uses no memory.

        Raises NormalWorldError when the address space is refused.
        """
        size = align_up(max(size, 1), self.chunk)
        arena = Arena(base=reservation.reserve(size, self.chunk), size=size)
        self._arenas[arena] = None
        return arena

    def commit(self, arena: Arena, offset: int, length: int) -> None:
        """Put memory behind a range that has none; pages come, zeroed, at first touch.

        Raises GrantRefusedError when the OS refuses; then every chunk is as it was.
        """
        if not length:
            return
        try:
            self._map(arena.base + offset, length)
        except OSError as error:
            reservation.put_back(arena.base + offset, length)
            raise _refusal(length, error) from error

    def release(self, arena: Arena, offset: int, length: int, *, keep: bool = False) -> None:
        """Give the memory of a committed range back, scrubbed before anyone can see it.

        Returns when the OS has it, or with `keep`, where memory can move, when it is parked.
        """
        if length:
            self._unmap(arena.base + offset, length, keep=keep)

    def trim(self, kept: int) -> None:
        """Give what is parked beyond `kept` bytes to the OS. Returns when it has it."""
        del kept  # nothing is parked here

    def ready(self) -> int:
        """Return the bytes that are parked."""
        return 0

    def view(self, arena: Arena, offset: int, length: int) -> memoryview:
        """Return a writable view of committed memory (any alignment).

        The view must not be used after the release of its range: the addresses fault then.
        """
        return mman.view(arena.base + offset, length)

    def free(self, arena: Arena) -> None:
        """Give the addresses back. The arena is dead after."""
        del self._arenas[arena]
        mman.munmap(arena.base, arena.size)

    def resident(self) -> int:
        """Return the bytes of the arenas that the kernel has pages for, asked from its page tables.

        mincore(2) over the arenas costs a few nanoseconds per page. The alternatives are worse:
        /proc/self/statm counts secret memory as file pages, together with every library, and
        /proc/self/smaps prints a page of text for each chunk.
        """
        return mman.PAGE * sum(map(_pages_of, list(self._arenas)))

    @abc.abstractmethod
    def _map(self, address: int, length: int) -> None:
        """Map fresh memory over whole chunks of a reservation; may stop half-way with OSError."""

    @abc.abstractmethod
    def _unmap(self, address: int, length: int, *, keep: bool) -> None:
        """Make a committed range a reservation again; nobody else sees what it held.

        `keep`: its memory may be parked.
        """


class MemfdSecretMemory(_MappedMemory):
    """Memory outside the kernel's direct map: no /proc/PID/mem, ptrace, kcore, swap, dump or DMA."""

    def __init__(self, chunk: int = DEFAULT_CHUNK) -> None:
        super().__init__(chunk)
        self._parked = _place_to_park(chunk)

    @property
    def protection(self) -> Protection:
        """The label of what this memory is protected by."""
        return Protection(
            name="memfd_secret",
            protected=True,
            summary=(
                "Other users, reads from outside, swap and core dumps cannot reach model memory; a hostile "
                "kernel still can."
            ),
        )

    def _map(self, address: int, length: int) -> None:
        # The kernel marks these mappings locked and left out of dumps by itself.
        moved = self._parked.take(address, length) if self._parked is not None else 0
        if moved == length:
            return
        for chunk in range(address + moved, address + length, self.chunk):
            fd = mman.memfd_secret()
            try:
                os.ftruncate(fd, self.chunk)
                mman.mmap(chunk, self.chunk, _READ_WRITE, mman.MAP_SHARED | mman.MAP_FIXED, fd)
            finally:
                os.close(fd)
        # Shared pages in a forked child would outlive their release here.
        mman.madvise(address, length, mman.MADV_DONTFORK)

    def trim(self, kept: int) -> None:
        """Give what is parked beyond `kept` bytes to the OS. Returns when it has it."""
        if self._parked is not None:
            self._parked.trim(kept)

    def ready(self) -> int:
        """Return the bytes that are parked."""
        return self._parked.size if self._parked is not None else 0

    def resident(self) -> int:
        """Return the bytes of the arenas and of parked chunks that the kernel has pages for."""
        if self._parked is None:
            return super().resident()
        with self._parked.still() as parked:
            return super().resident() + parked

    def _unmap(self, address: int, length: int, *, keep: bool) -> None:
        if keep and self._parked is not None:
            _clear(address, length)
            self._parked.park(address, length)
            return
        # Scrubbing is left to the kernel, which clears every page of secret memory as it frees it, before
        # the allocator can hand it to anyone (secretmem_free_folio in mm/secretmem.c), and does so even
        # when this process is killed. A memset here added a third to the time of a recall (512 MiB:
        # 157 ms without, 54 ms more with).
        reservation.put_back(address, length)


class PlainMemory(_MappedMemory):
    """Ordinary anonymous memory in the same shape: for trying things out, and for baselines."""

    @property
    def protection(self) -> Protection:
        """The label of what this memory is protected by."""
        return Protection(
            name="plain",
            protected=False,
            summary="Ordinary memory: root and the kernel can read it. For trying things out only.",
        )

    def _map(self, address: int, length: int) -> None:
        mman.mmap(address, length, _READ_WRITE, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_FIXED)
        # A huge page spans chunks: releasing one of them would give nothing back.
        for advice in (mman.MADV_NOHUGEPAGE, mman.MADV_DONTDUMP, mman.MADV_DONTFORK):
            mman.madvise(address, length, advice)

    def _unmap(self, address: int, length: int, *, keep: bool) -> None:
        del keep  # an ordinary page is allocated in the time that clearing it takes
        # The kernel clears anonymous pages when it hands them out, not when it takes them back.
        _clear(address, length)
        reservation.put_back(address, length)


def _clear(address: int, length: int) -> None:
    """Overwrite the pages of a range that exist; a write would allocate the others."""
    pages = mman.resident_pages(address, length)
    for run in _RESIDENT_RUN.finditer(pages):
        mman.zero(address + run.start() * mman.PAGE, (run.end() - run.start()) * mman.PAGE)


def probe_secret_memory(size: int = DEFAULT_CHUNK, chunk: int = DEFAULT_CHUNK) -> None:
    """Raise NormalWorldError, saying why and what to do, unless `size` bytes of secret memory can be had.

    Uses no memory: it maps that much and touches nothing. Physical memory may still be short. Lets this
    process lock as much memory as its user may.
    """
    _require_mappings(size, chunk)
    _raise_lock_limit()
    try:
        fd = mman.memfd_secret()
    except OSError as error:
        raise _no_secret_memory(error) from error
    try:
        os.ftruncate(fd, align_up(max(size, 1), mman.PAGE))
        address = mman.mmap(0, size, _READ_WRITE, mman.MAP_SHARED, fd)
    except OSError as error:
        raise _no_locked_memory(size, error) from error
    finally:
        os.close(fd)
    mman.munmap(address, size)


def _place_to_park(chunk: int) -> ParkedChunks | None:
    """Return where chunks can be parked; None where they cannot.

    The kernel counts a page as locked once more with each move. Under a limit, memory would soon be refused.
    """
    try:
        if locks_without_limit():
            return ParkedChunks(chunk, _RAM)
    except (OSError, NormalWorldError):
        pass  # no secret memory, or no addresses: whoever needs them is told why
    return None


def locks_without_limit() -> bool:
    """Return whether this process may lock as much memory as it likes. Raises OSError.

    CAP_IPC_LOCK counts only where the kernel says so: not in a namespace of users. So it is tried.
    """
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit == resource.RLIM_INFINITY:
        return True
    beyond = align_up(limit + 1, mman.PAGE)
    try:
        mman.munmap(_map_secret(beyond), beyond)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return False
        raise
    return True


def _map_secret(size: int) -> int:
    """Map `size` bytes of secret memory anywhere and touch nothing; return where. Raises OSError."""
    fd = mman.memfd_secret()
    try:
        os.ftruncate(fd, size)
        return mman.mmap(0, size, _READ_WRITE, mman.MAP_SHARED, fd)
    finally:
        os.close(fd)


def _pages_of(arena: Arena) -> int:
    try:
        return mman.resident_pages(arena.base, arena.size).count(1)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            return 0  # freed by another thread since its arena was listed
        raise


def _require_mappings(size: int, chunk: int) -> None:
    """Raise NormalWorldError when a process may not have one mapping per chunk of `size`."""
    try:
        limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return  # nobody tells: commit will, should it matter
    needed = -(-size // chunk) + _MAPPINGS_OF_OTHERS
    if needed > limit:
        raise NormalWorldError(
            f"{format_size(size)} of secret memory needs {needed} mappings; the kernel allows {limit}.",
            hint=f"Run `sysctl -w vm.max_map_count={2 * needed}` as root.",
        )


def _no_secret_memory(error: OSError) -> NormalWorldError:
    if error.errno == errno.ENOSYS:
        return NormalWorldError(
            "This kernel offers no secret memory (memfd_secret).",
            hint="Boot with secretmem.enable=1 (Linux 5.14 or later), or use --memory plain.",
            code="no_secret_memory",
        )
    return NormalWorldError(
        f"The kernel refused secret memory ({error.strerror}).",
        hint="Allow memfd_secret in the sandbox or container (seccomp), or use --memory plain.",
        code="no_secret_memory",
    )


def _no_locked_memory(size: int, error: OSError) -> NormalWorldError:
    if error.errno != errno.EAGAIN:
        return NormalWorldError(
            f"The kernel refused {format_size(size)} of secret memory ({error.strerror}).",
            hint="Free memory or address space, or use --memory plain.",
            code="no_secret_memory",
        )
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return NormalWorldError(
        f"{format_size(size)} of secret memory is more than this process may lock ({format_size(limit)}).",
        hint=f"{LIFT_LOCK_LIMIT} `flexserve doctor` says how it is for good, and what else helps. "
        "Or use --memory plain, unprotected.",
        code="locked_memory_limit",
    )


def _raise_lock_limit() -> None:
    """Raise the limit on locked memory to what the user may have: nobody need type `ulimit -l`."""
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))


def _refusal(length: int, error: OSError) -> GrantRefusedError:
    hints = {
        errno.EAGAIN: f"It may be locked no further. {LIFT_LOCK_LIMIT}",
        errno.ENOMEM: "Free memory, or raise vm.max_map_count.",
        errno.EMFILE: "Raise RLIMIT_NOFILE (`ulimit -n`).",
        errno.ENFILE: "Raise fs.file-max.",
    }
    return GrantRefusedError(
        f"The OS refused {format_size(length)} of memory ({error.strerror}).",
        hint=hints.get(error.errno or 0, "Free memory, or use --memory plain."),
    )
