"""The file of the disk that a machine with a secure world inside has: in the store, ROOT/images/inside.disk.

It has what is derived of the store's models: their weights as the trusted application keeps them in memory,
and conversations. All of it can be made again. The file is sparse: it takes of the host what was written.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from flexserve.errors import FlexServeError, StoredDataError
from flexserve.platforms.trustzone.disk_image import SLOT, DiskImage, FileBlocks
from flexserve.trusted.store.derived import INSIDE_DISK
from flexserve.trusted.store.files import PRIVATE_FILE, disk_errors, give_to_owner_of
from flexserve.trusted.store.manifest import BLOCK_SIZE, read_label
from flexserve.trusted.store.store import Store
from flexserve.units import GIB

# A machine has 3 GiB of RAM at most: some twenty models that fill it, and their conversations.
SIZE = 64 * GIB

_PUNCH_HOLE = 1 | 2  # FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class StoreDisk:
    """The disk's file, for the length of a block. One process at a time has the store's.

    Another one gets an empty disk that has no name: it is gone with the last process that has it open.
    """

    def __init__(self, store: Path, size: int = SIZE) -> None:
        """`store`: its root; `size`: bytes that the guest sees."""
        self._models, self._images, _ = Store.make_folders(store)
        self._size = size
        self._life = contextlib.ExitStack()
        self.fd = -1
        self.is_kept = False  # it is the store's

    def __enter__(self) -> Self:
        """Open it. Raises NormalWorldError."""
        with disk_errors("Opening the machine's disk"):
            named = self._named()
            self.fd = self._nameless() if named is None else named
            self.is_kept = named is not None
        self._life.callback(os.close, self.fd)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._life.close()

    def _named(self) -> int | None:
        """Return the store's own, locked for as long as this process or the emulator has it; None: it is."""
        path = self._images / INSIDE_DISK
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(path, flags, PRIVATE_FILE)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.lexists(path) and os.path.samestat(os.fstat(fd), os.lstat(path)):
                    give_to_owner_of(self._images, fd)
                    return fd
            except BlockingIOError:
                os.close(fd)
                return None
            os.close(fd)  # it was removed meanwhile

    def _nameless(self) -> int:
        with tempfile.TemporaryFile(dir=self._images) as file:
            return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 0)

    def made_ready(self, firmware: bytes) -> int:
        """Have it be a disk for a machine that is about to start with `firmware`; return its descriptor.

        What belongs to models that are gone is removed. So is everything that another firmware's application
        sealed, and a disk that is damaged: none of it can be used any more. The host has its room again.
        Raises NormalWorldError.
        """
        file = Path(f"/proc/self/fd/{self.fd}")
        with disk_errors("Making the machine's disk ready"), FileBlocks(file) as blocks:
            image = self._image(blocks)
            image.keep(self._model_ids(), int.from_bytes(hashlib.sha256(firmware).digest()[:4]))
            for slots in image.unused():
                _give_room_back(self.fd, slots.start * SLOT, len(slots) * SLOT)
        return self.fd

    def _image(self, blocks: FileBlocks) -> DiskImage:
        if os.fstat(self.fd).st_size == self._size:
            with contextlib.suppress(StoredDataError):
                return DiskImage(blocks)
        os.ftruncate(self.fd, 0)
        os.ftruncate(self.fd, self._size)
        return DiskImage.create(blocks, self._size)

    def _model_ids(self) -> set[str]:
        found = set()
        for path in self._models.glob("*.flex"):
            with contextlib.suppress(OSError, FlexServeError), path.open("rb") as file:
                found.add(read_label(file.read(BLOCK_SIZE)).model_id)
        return found


def _give_room_back(file: int, offset: int, size: int) -> None:
    """Let the host's disk have a part of a file, where its file system can do that: it reads as zeros."""
    _libc.fallocate(file, _PUNCH_HOLE, offset, size)
