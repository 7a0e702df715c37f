"""The few memory calls of Linux that Python's `mmap` module cannot make: fixed addresses, secret memory.

Thin: one function per call, errors as OSError, no policy. ctypes drops the GIL around each.
"""

from __future__ import annotations

import ctypes
import os

PROT_NONE = 0
PROT_READ = 1
PROT_WRITE = 2
PROT_EXEC = 4

MAP_SHARED = 0x01
MAP_PRIVATE = 0x02
MAP_FIXED = 0x10
MAP_ANONYMOUS = 0x20
MAP_NORESERVE = 0x4000

_MOVE = 1 | 2 | 4  # MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP

MADV_DONTNEED = 4
MADV_DONTFORK = 10
MADV_NOHUGEPAGE = 15
MADV_DONTDUMP = 16
MADV_POPULATE_READ = 22

PAGE = os.sysconf("SC_PAGE_SIZE")

_SYS_MEMFD_SECRET = 447  # the same on every architecture: it is younger than the unified numbering
_MAP_FAILED = ctypes.c_void_p(-1).value
_PYBUF_WRITE = 0x200

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.syscall.argtypes = [ctypes.c_long, ctypes.c_ulong]
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.mremap.restype = ctypes.c_void_p
_libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
_libc.munmap.restype = ctypes.c_int
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.restype = ctypes.c_int
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mincore.restype = ctypes.c_int
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
_libc.getrandom.restype = ctypes.c_ssize_t
_libc.getrandom.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
_libc.memset.restype = ctypes.c_void_p
_libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

_memory_view = ctypes.pythonapi.PyMemoryView_FromMemory
_memory_view.restype = ctypes.py_object
_memory_view.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]


def memfd_secret() -> int:
    """Return a new descriptor (close-on-exec) of secret memory. Raises OSError."""
    fd = int(_libc.syscall(_SYS_MEMFD_SECRET, os.O_CLOEXEC))
    if fd < 0:
        raise _error("memfd_secret")
    return fd


def mmap(address: int, length: int, protection: int, flags: int, fd: int = -1, *, offset: int = 0) -> int:
    """Map `length` bytes (of `fd`, from `offset`) at (with MAP_FIXED: exactly) `address`; return where.

    Raises OSError.
    """
    result = _libc.mmap(address, length, protection, flags, fd, offset)
    if result is None or result == _MAP_FAILED:
        raise _error("mmap")
    return int(result)


def move(address: int, length: int, target: int) -> None:
    """Move a mapping to `target`, in place of what is mapped there; the old addresses stay mapped.

    They have no pages. Those of a file come back there when they are touched, until something else is
    mapped over them. The kernel counts locked memory once more from now on. Raises OSError.
    """
    result = _libc.mremap(address, length, length, _MOVE, target)
    if result is None or result == _MAP_FAILED:
        raise _error("mremap")


def munmap(address: int, length: int) -> None:
    """Give a range of addresses, and what is behind it, back. Raises OSError."""
    if _libc.munmap(address, length) != 0:
        raise _error("munmap")


def madvise(address: int, length: int, advice: int) -> None:
    """Advise the kernel about a mapped range. Raises OSError."""
    if _libc.madvise(address, length, advice) != 0:
        raise _error("madvise")


def resident_pages(address: int, length: int) -> bytes:
    """Return one byte per page of a mapped range: 1 where the kernel has a page in place. Raises OSError."""
    pages = ctypes.create_string_buffer(-(-length // PAGE))
    if _libc.mincore(address, length, pages) != 0:
        raise _error("mincore")
    return pages.raw


def zero(address: int, length: int) -> None:
    """Overwrite mapped, writable memory with zeros."""
    _libc.memset(address, 0, length)


def randomize(address: int, length: int) -> None:
    """Overwrite mapped, writable memory with at most 256 random bytes. Raises OSError."""
    if _libc.getrandom(address, length, 0) != length:
        raise _error("getrandom")


def view(address: int, length: int) -> memoryview:
    """Return a writable view of raw memory; using it after the memory went is a segmentation fault."""
    view: memoryview = _memory_view(address, length, _PYBUF_WRITE)
    return view


def _error(call: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{call}: {os.strerror(code)}")
