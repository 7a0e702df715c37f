"""Images of models' weights: where they are kept, sealed as the application has them in memory.

In the store's folder, and then this process reads them; or on a disk of the guest's, which writes them into
pages in which they are decrypted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Protocol

from flexserve.errors import GrantRefusedError
from flexserve.platforms.trustzone.disk_image import StoredObject, name_of
from flexserve.tee_client.application import Application
from flexserve.tee_client.disk import Disk
from flexserve.tee_client.files import ImageFile, SealedFiles
from flexserve.tee_client.memory import Memory
from flexserve.tee_client.messages import Ask, Reply, Status
from flexserve.trusted.store.aead import SALT_SIZE
from flexserve.trusted.store.manifest import Manifest

_SALT = struct.Struct("<4Q")


class Image(Protocol):
    """The image of one model."""

    @property
    def salt(self) -> bytes:
        """What Ask.IMAGE takes."""

    @property
    def count(self) -> int:
        """How many chunks it has."""

    def load(self, model: int, chunk: int, *, ask: bool) -> Reply:
        """Have a chunk of an open model loaded; return the application's answer.

        `ask`: the OS may be asked for memory that it takes, if that is done here; otherwise REFUSED tells.
        Raises GrantRefusedError, StoredDataError and NormalWorldError.
        """

    def close(self) -> None:
        """Let go of it. Always safe."""


class Images(Protocol):
    """Where images are. Each method raises NormalWorldError and StoredDataError."""

    def has(self, manifest: Manifest) -> bool:
        """Return whether there is an image of a model, good or not."""

    def open(self, manifest: Manifest) -> Image | None:
        """Return the image of a model; None: there is none that could be one."""

    def room(self) -> int:
        """Return for how many bytes of weights the OS has pages that come with them, and are not granted.

        Less than 0: it wants so many back before it has any.
        """

    def make(self, manifest: Manifest, model: int, count: int) -> None:
        """Have the application seal the `count` chunks of an open model, and keep them as its image."""

    def drop(self, manifest: Manifest) -> None:
        """Remove the image of a model, if there is one."""


class FileImages:
    """In the store's folder: chunks go to the application in messages."""

    def __init__(self, app: Application, files: SealedFiles) -> None:
        self._app, self._files = app, files

    def has(self, manifest: Manifest) -> bool:
        """As Images has it."""
        return self._files.has_image(manifest)

    def open(self, manifest: Manifest) -> Image | None:
        """As Images has it."""
        file = self._files.open_image(manifest)
        return _InFile(self._app, file) if file is not None else None

    def room(self) -> int:
        """As Images has it."""
        return 0

    def make(self, manifest: Manifest, model: int, count: int) -> None:
        """As Images has it."""
        self._files.write_image(manifest, count, self._sealed(model, count))

    def _sealed(self, model: int, count: int) -> Iterator[tuple[bytes, bytes]]:
        for chunk in range(count):
            reply = self._app.do(Ask.SEAL, model, chunk)
            yield _SALT.pack(*reply.values[:4]), reply.payload

    def drop(self, manifest: Manifest) -> None:
        """As Images has it."""
        self._files.drop_image(manifest)


class _InFile:
    def __init__(self, app: Application, file: ImageFile) -> None:
        self._app, self._file = app, file
        self.salt, self.count = file.salt, file.count

    def load(self, model: int, chunk: int, *, ask: bool) -> Reply:
        del ask  # memory for it is granted before
        return self._app.ask(Ask.LOAD, model, chunk, payload=self._file.chunk(chunk))

    def close(self) -> None:
        self._file.close()


class DiskImages:
    """On a disk of the guest's: chunks come by DMA into pages that the guest then hands over."""

    def __init__(self, disk: Disk, memory: Memory, files: SealedFiles) -> None:
        self._disk, self._memory, self._files = disk, memory, files

    def has(self, manifest: Manifest) -> bool:
        """As Images has it."""
        return _name(manifest) in self._disk.image.objects()

    def open(self, manifest: Manifest) -> Image | None:
        """As Images has it."""
        stored = self._disk.image.objects().get(_name(manifest))
        if stored is None or len(stored.head) != SALT_SIZE:
            return None
        return self._image(stored)

    def _image(self, stored: StoredObject) -> Image:
        return _OnDisk(self._disk, self._memory, stored)

    def room(self) -> int:
        """As Images has it."""
        return self._disk.room()

    def make(self, manifest: Manifest, model: int, count: int) -> None:
        """As Images has it."""
        self._files.require_room(manifest)  # the disk's file is in the store, and takes what is written to it
        self._disk.seal(_name(manifest), model, count)

    def drop(self, manifest: Manifest) -> None:
        """As Images has it."""
        if self.has(manifest):
            self._disk.image.remove(_name(manifest))


class _OnDisk:
    def __init__(self, disk: Disk, memory: Memory, stored: StoredObject) -> None:
        self._disk, self._memory, self._stored = disk, memory, stored
        self.salt, self.count = stored.head, len(stored.pieces)

    def load(self, model: int, chunk: int, *, ask: bool) -> Reply:
        # The disk writes to pages that are the guest's. Where it has none, those that wait granted go back.
        # Ahead of need they go first, and nobody makes way for more than the guest has to spare.
        chunk_bytes = self._memory.chunk
        if not ask and not self._memory.give_back(chunk_bytes) and self._disk.room() < chunk_bytes:
            return Reply(Status.REFUSED, (1, 0, 0, 0, 0), b"")
        while True:
            try:
                reply = self._disk.load(self._stored, model, chunk)
            except GrantRefusedError:  # what another thread gave back may have been taken by a third one
                if not (ask and self._memory.give_back(self._memory.chunk)):
                    raise
                continue
            if reply.status in (Status.DONE, Status.DAMAGED):
                self._memory.adopted()  # loaded; or wiped, and unused
            return reply

    def close(self) -> None:
        pass


def _name(manifest: Manifest) -> str:
    return name_of("weights", manifest.model_id)
