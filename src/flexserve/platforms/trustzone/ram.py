"""The machine's DRAM as the secure core reaches it: a shared file, all of it, by physical address."""

from __future__ import annotations

import mmap
import os

from flexserve.errors import MonitorError
from flexserve.platforms.linux import mman

BASE = 0x4000_0000  # where RAM begins on QEMU's `virt` machine
PAGE = 4096  # bytes; of the machine, whatever the host's are

_READ_WRITE = mman.PROT_READ | mman.PROT_WRITE


class Ram:
    """The RAM behind descriptor `fd`, which stays the caller's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size = os.fstat(fd).st_size  # bytes
        self.pages = self.size // PAGE

    def holds(self, ipa: int, pages: int) -> bool:
        """Return whether `pages` whole pages from `ipa` on lie in RAM."""
        return ipa % PAGE == 0 and pages > 0 and ipa >= BASE and ipa + pages * PAGE <= BASE + self.size

    def window(self, offset: int, length: int) -> memoryview:
        """Return `length` bytes from `offset` on (both whole pages), mapped for as long as it is used.

        Raises MonitorError for a range outside RAM: only the monitor tells such offsets.
        """
        self._require(offset, length)
        return memoryview(mmap.mmap(self._fd, length, mmap.MAP_SHARED, offset=offset))

    def part(self, offset: int, length: int) -> memoryview:
        """Return a range as `window` does, mapped for good and by no descriptor of its own.

        Who closes the others keeps this part of RAM and reaches no other. Raises MonitorError and OSError.
        """
        self._require(offset, length)
        address = mman.mmap(0, length, _READ_WRITE, mman.MAP_SHARED, self._fd, offset=offset)
        return mman.view(address, length)

    def map(self, ipa: int, address: int, length: int) -> None:
        """Put `length` bytes of RAM from `ipa` on behind `address`. Raises OSError."""
        flags = mman.MAP_SHARED | mman.MAP_FIXED
        mman.mmap(address, length, _READ_WRITE, flags, self._fd, offset=ipa - BASE)

    def _require(self, offset: int, length: int) -> None:
        if not self.holds(BASE + offset, length // PAGE):
            raise MonitorError(
                f"The monitor speaks of {length} bytes at {offset:#x}, outside of RAM.",
                hint="Rebuild the monitor: it and this program disagree.",
            )
