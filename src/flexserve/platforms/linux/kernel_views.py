"""What root can see of a process through the kernel's own interfaces: attacks are made of this."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import re
import struct
from collections.abc import Iterator

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.process_vm_readv.restype = ctypes.c_ssize_t

_PEEKDATA, _DETACH, _SEIZE, _INTERRUPT = 2, 17, 0x4206, 0x4207
_PIDFD_GETFD = 438  # the system call
_WALL = 0x40000000
_PIECE = 4 << 20  # bytes read at a time
_PAGE = 4096
_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \d+ *(.*)")


@dataclasses.dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps."""

    start: int
    end: int
    access: str
    name: str

    @property
    def secret(self) -> bool:
        """Whether it is of `memfd_secret` memory."""
        return "secretmem" in self.name


def mappings(pid: int) -> list[Mapping]:
    """Return all mappings of a process. Raises OSError."""
    with open(f"/proc/{pid}/maps") as lines:
        found = [_LINE.match(line) for line in lines]
    return [Mapping(int(m[1], 16), int(m[2], 16), m[3], m[4].strip()) for m in found if m]


def descriptor(pid: int, number: int) -> int:
    """Return a descriptor of ours for what is open in a process under a number. Raises OSError."""
    process = os.pidfd_open(pid)
    try:
        ours: int = _libc.syscall(_PIDFD_GETFD, process, number, 0)
    finally:
        os.close(process)
    if ours < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return ours


def read_mem(pid: int, address: int, length: int) -> bytes:
    """Read through /proc/PID/mem. Raises OSError."""
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        return os.pread(fd, length, address)
    finally:
        os.close(fd)


def read_vm(pid: int, address: int, length: int) -> bytes:
    """Read with process_vm_readv(2). Raises OSError."""

    class IoVec(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

    buffer = ctypes.create_string_buffer(length)
    local, remote = IoVec(ctypes.addressof(buffer), length), IoVec(address, length)
    count = _libc.process_vm_readv(
        ctypes.c_int(pid),
        ctypes.byref(local),
        ctypes.c_ulong(1),
        ctypes.byref(remote),
        ctypes.c_ulong(1),
        ctypes.c_ulong(0),
    )
    if count < 0:
        raise OSError(ctypes.get_errno(), "process_vm_readv")
    return buffer.raw[:count]


def peek(pid: int, address: int) -> bytes:
    """Stop a process as a debugger does, read one word of it, and let it go on. Raises OSError."""
    _ptrace(_SEIZE, pid, 0)
    _ptrace(_INTERRUPT, pid, 0)
    os.waitpid(pid, _WALL)
    try:
        ctypes.set_errno(0)
        word = ctypes.c_long()
        # The library's wrapper returns the word itself, so only errno tells an error from a −1.
        word.value = _libc.ptrace(_PEEKDATA, pid, address, None)
        if ctypes.get_errno():
            raise OSError(ctypes.get_errno(), "PTRACE_PEEKDATA")
        return bytes(word)
    finally:
        _ptrace(_DETACH, pid, 0)


def _ptrace(request: int, pid: int, address: int) -> None:
    if _libc.ptrace(request, pid, address, None) < 0:
        raise OSError(ctypes.get_errno(), f"ptrace({request:#x})")


def places_of(pattern: bytes, pid: int) -> list[tuple[Mapping, int]]:
    """Search all that /proc/PID/mem shows; return the mapping and address of an occurrence in each piece."""
    return [
        (mapping, address + at)
        for mapping, address, data in pieces_of(pid, overlap=len(pattern) - 1)
        if (at := data.find(pattern)) >= 0
    ]


def pieces_of(pid: int, *, overlap: int) -> Iterator[tuple[Mapping, int, bytes]]:
    """Yield all that /proc/PID/mem shows of a process: of which mapping, from which address on, and what.

    A piece goes on with the first `overlap` bytes of the next. Raises OSError where nobody may look.
    """
    for mapping in mappings(pid):
        if "r" in mapping.access and mapping.name not in {"[vvar]", "[vsyscall]", "[vvar_vclock]"}:
            for address, data in _pieces(pid, mapping, overlap):
                yield mapping, address, data


def _pieces(pid: int, mapping: Mapping, overlap: int) -> Iterator[tuple[int, bytes]]:
    for address in range(mapping.start, mapping.end, _PIECE):
        end = min(mapping.end, address + _PIECE + overlap)
        try:
            yield address, read_mem(pid, address, end - address)
        except OSError as error:
            if error.errno not in {errno.EIO, errno.EFAULT}:
                raise


def own_pieces(maps: int, overlap: int) -> Iterator[bytes]:
    """Yield all that this process itself can read of its memory, with nothing but write(2).

    `maps` is a descriptor of its /proc/self/maps, which may have been opened long before. A piece goes on
    with the first `overlap` bytes of the next.
    """
    text = b""
    while data := os.pread(maps, 1 << 16, len(text)):
        text += data
    copy = os.memfd_create("copy")
    for line in text.decode().splitlines():
        found = _LINE.match(line)
        if found is None or found[3][0] != "r":
            continue
        for address in range(int(found[1], 16), int(found[2], 16), _PIECE):
            length = min(int(found[2], 16) - address, _PIECE + overlap)
            os.lseek(copy, 0, os.SEEK_SET)
            count = _libc.write(ctypes.c_int(copy), ctypes.c_void_p(address), ctypes.c_size_t(length))
            if count > 0:  # else it is nothing to be read, or gone meanwhile
                yield os.pread(copy, count, 0)


def children_of(pid: int) -> list[int]:
    """Return the processes that a process started, and that live. Raises OSError."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def frame_of(pid: int, address: int) -> int:
    """Return the physical address behind a virtual one, from /proc/PID/pagemap (0: not told)."""
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(address // _PAGE * 8)
        (entry,) = struct.unpack("<Q", pagemap.read(8))
    present, frame = entry >> 63, entry & ((1 << 55) - 1)
    return frame * _PAGE + address % _PAGE if present and frame else 0


def read_kcore(physical: int, length: int) -> bytes:
    """Read physical memory through the kernel's direct map as /proc/kcore shows it (empty: not in it).

    Raises OSError.
    """
    with open("/proc/kcore", "rb", buffering=0) as kcore:
        header = kcore.read(64)
        offset, size, count = struct.unpack_from("<32xQ14xHH", header)
        kcore.seek(offset)
        table = kcore.read(size * count)
        for start in range(0, size * count, size):
            kind, _, place, _, base, _, extent, _ = struct.unpack_from("<IIQQQQQQ", table, start)
            if kind == 1 and base <= physical and physical + length <= base + extent:
                return os.pread(kcore.fileno(), length, place + physical - base)
    return b""
