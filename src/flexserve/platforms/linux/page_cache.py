"""A file mapped over an arena: memory that the OS keeps, or drops, as part of its page cache.

Not secure memory, and no adapter of that port: what an unprotected program's weights live in, for
the baseline that FlexServe is measured against.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import BinaryIO

from flexserve.errors import NormalWorldError
from flexserve.platforms.linux import mman
from flexserve.platforms.ports import Arena
from flexserve.units import MIB

_PIECE = 4 * MIB


class CachedFile:
    """A nameless file as long as an arena. Written once, then mapped over it, read-only.

    Ends with the arena and this object; nothing of it stays on the disk.
    """

    def __init__(self, arena: Arena, folder: Path) -> None:
        self._arena = arena
        self._file: BinaryIO = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        os.ftruncate(self._file.fileno(), arena.size)

    def write(self, offset: int, data: memoryview) -> None:
        """Write a part, before `map`. Raises NormalWorldError when the disk refuses."""
        try:
            os.pwrite(self._file.fileno(), data, offset)
        except OSError as error:
            raise NormalWorldError(f"The disk refused ({error.strerror}).", hint="Free some space.") from None

    def map(self) -> None:
        """Put the file behind the whole arena. Raises OSError."""
        os.fdatasync(self._file.fileno())  # the OS drops only pages that are on the disk
        flags = mman.MAP_PRIVATE | mman.MAP_FIXED
        mman.mmap(self._arena.base, self._arena.size, mman.PROT_READ, flags, self._file.fileno())

    def bring(self, offset: int, length: int) -> None:
        """Have the pages of a range in memory, read from the disk if need be. Raises OSError."""
        mman.madvise(self._arena.base + offset, length, mman.MADV_POPULATE_READ)

    def read_ahead(self, offset: int, length: int) -> None:
        """Ask the disk for a range, without waiting."""
        os.posix_fadvise(self._file.fileno(), offset, length, os.POSIX_FADV_WILLNEED)

    def drop(self, offset: int, length: int) -> None:
        """Make the OS forget a range, as it does under pressure. Raises OSError."""
        mman.madvise(self._arena.base + offset, length, mman.MADV_DONTNEED)
        for start in range(offset, offset + length, _PIECE):
            size = min(_PIECE, offset + length - start)
            os.posix_fadvise(self._file.fileno(), start, size, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the file; a mapping of it stays until the arena is freed."""
        self._file.close()
