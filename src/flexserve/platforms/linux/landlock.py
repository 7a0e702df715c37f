"""Which files a process may still reach: Landlock, as its system calls have it.

A domain binds the thread that enters it and all that it starts from then on, so it is entered while
there is one thread. Later kernels know more rights; each is asked for where it exists.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from pathlib import Path

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # younger than the unified numbering
_VERSION_FLAG, _PATH_BENEATH = 1, 1

_EXECUTE, _WRITE, _READ, _READ_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = (
    1 << bit for bit in (0, 1, 2, 3, 5, 7, 8)
)
_FIRST_RIGHTS = (1 << 13) - 1  # of version 1
_REFER, _TRUNCATE, _IOCTL = 1 << 13, 1 << 14, 1 << 15  # of versions 2, 3 and 5
_TCP = 0b11  # bind, connect: version 4
_SCOPES = 0b11  # abstract sockets, signals: version 6
_STORE = _WRITE | _READ | _READ_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER | _TRUNCATE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def version() -> int:
    """Return the version of this kernel's Landlock; 0 where there is none, or it is switched off."""
    return max(0, _syscall(_CREATE, 0, 0, _VERSION_FLAG))


def enter(folders: Sequence[Path]) -> None:
    """Reach no file any more but those in `folders`, read and written; nor any TCP port. Raises OSError.

    It also ends signals and abstract sockets to anybody outside of this process and its children,
    where the kernel knows how.
    """
    known = version()
    handled = _FIRST_RIGHTS
    for since, right in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL)):
        handled |= right if known >= since else 0
    attributes = struct.pack("=QQQ", handled, _TCP if known >= 4 else 0, _SCOPES if known >= 6 else 0)
    size = 24 if known >= 6 else 16 if known >= 4 else 8
    ruleset = _checked(_CREATE, _address(attributes), size, 0)
    try:
        for folder in folders:
            place = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                rule = struct.pack("=Qi", _STORE & handled, place)
                _checked(_ADD, ruleset, _PATH_BENEATH, _address(rule), 0)
            finally:
                os.close(place)
        _checked(_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)


def _address(data: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(data, len(data))


def _checked(number: int, *arguments: int | ctypes.Array[ctypes.c_char]) -> int:
    result = _syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())}")
    return result


def _syscall(number: int, *arguments: int | ctypes.Array[ctypes.c_char]) -> int:
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return int(_libc.syscall(ctypes.c_long(number), *words))
