"""A page for keys: memory that no debugger, swap or core dump reads, overwritten before it goes back."""

from __future__ import annotations

import contextlib
import os
import weakref

from flexserve.platforms.linux import mman


class SecretPage:
    """PAGE bytes of `memfd_secret`; where there is none (`secret` False), of memory that is not dumped.

    It is wiped when nobody has the object any more, and views of it are good until then. A process that is
    forked has it, too.
    """

    def __init__(self) -> None:
        """Raises OSError when there is no memory."""
        self._address, self.secret = _mapped()
        with contextlib.suppress(OSError):
            mman.madvise(self._address, mman.PAGE, mman.MADV_DONTDUMP)
        weakref.finalize(self, _give_back, self._address, os.getpid())

    def view(self, offset: int, size: int) -> memoryview:
        """Return a writable view of `size` bytes from `offset` on. Raises ValueError beyond the page."""
        if offset < 0 or size < 0 or offset + size > mman.PAGE:
            raise ValueError("that is not within the page")
        return mman.view(self._address + offset, size)

    def fill(self, offset: int, size: int) -> memoryview:
        """Put random bytes there, which were nowhere else, and return a view of them. Raises OSError."""
        view = self.view(offset, size)
        mman.randomize(self._address + offset, size)
        return view

    def wipe(self, offset: int, size: int) -> None:
        """Overwrite a part with zeros. Always safe within the page."""
        self.view(offset, size)
        mman.zero(self._address + offset, size)


def _mapped() -> tuple[int, bool]:
    access = mman.PROT_READ | mman.PROT_WRITE
    try:
        fd = mman.memfd_secret()
    except OSError:
        return mman.mmap(0, mman.PAGE, access, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS), False
    try:
        os.ftruncate(fd, mman.PAGE)
        return mman.mmap(0, mman.PAGE, access, mman.MAP_SHARED, fd), True
    except OSError:  # the limit of locked memory
        return mman.mmap(0, mman.PAGE, access, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS), False
    finally:
        os.close(fd)


def _give_back(address: int, owner: int) -> None:
    if os.getpid() == owner:  # it is shared with who was forked
        mman.zero(address, mman.PAGE)
    mman.munmap(address, mman.PAGE)
