"""What FlexServe is measured against where the secure world is inside of the emulated machine.

    strawman      all ciphertext of a model is read, then all of it is decrypted, then the prompt is computed
    strawman-opt  a chunk is read while others are decrypted, and the prompt is computed meanwhile
    nw-base       the same application as a process of the guest, where nothing protects it

Application, messages, scheduler, images and the disk that has them are those of FlexServe, and as many chunks
are decrypted at once. That disk reads FlexServe's ciphertext into the pages in which it is decrypted. The
strawmen's memory is the secure world's before anything is read, so no disk reaches it; and a process asks its
kernel to read. So theirs is read to a buffer of the kernel's, and copied. Contiguous memory for the strawmen
is a parameter of the driver, and a recall of everything frees it after a request; whoever measures does both.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from flexserve.platforms.trustzone.disk_image import DiskImage, StoredObject
from flexserve.tee_client.app import InsideApp
from flexserve.tee_client.application import Application
from flexserve.tee_client.disk import Disk
from flexserve.tee_client.files import SealedFiles
from flexserve.tee_client.images import DiskImages, Image, Images
from flexserve.tee_client.messages import Ask, Reply

BASELINES = ("strawman", "strawman-opt", "nw-base")


class Copied:
    """An image on a disk, of which chunks go to the application in messages. Any thread."""

    def __init__(self, app: Application, disk: DiskImage, stored: StoredObject) -> None:
        self._app, self._disk, self._pieces = app, disk, stored.pieces
        self.salt, self.count = stored.head, len(stored.pieces)

    def chunk(self, number: int) -> bytes:
        """Return a chunk with its tag. Raises StoredDataError and NormalWorldError."""
        piece = self._pieces[number]
        return self._disk.read(piece) + piece.tag

    def load(self, model: int, chunk: int, *, ask: bool) -> Reply:
        """As Image has it; memory for it is granted before."""
        del ask
        return self._app.ask(Ask.LOAD, model, chunk, payload=self.chunk(chunk))

    def close(self) -> None:
        """Do nothing."""


class ReadFirst(Copied):
    """One that is read whole before its first chunk is given out."""

    def __init__(self, app: Application, disk: DiskImage, stored: StoredObject) -> None:
        super().__init__(app, disk, stored)
        self._reading = threading.Lock()
        self._read: dict[int, bytes] = {}

    def chunk(self, number: int) -> bytes:
        """Return a chunk, having read all of them, unless it was read already. Raises as Copied's."""
        with self._reading:
            if number not in self._read:
                self._read = {each: super(ReadFirst, self).chunk(each) for each in range(self.count)}
            return self._read.pop(number)


class CopiedImages(DiskImages):
    """Images on a disk that are read as `kind` does."""

    def __init__(self, app: Application, disk: Disk, others: Any, kind: type[Copied]) -> None:
        """`others`: what DiskImages takes besides."""
        super().__init__(disk, *others)
        self._app, self._kind = app, kind

    def room(self) -> int:
        """Return that memory has to be granted."""
        return 0

    def _image(self, stored: StoredObject) -> Image:
        return self._kind(self._app, self._disk.image, stored)


class Baseline(InsideApp):
    """What they have in common: chunks are copied."""

    reading: type[Copied] = Copied

    def _images(self, files: SealedFiles, disk: Disk | None) -> Images:
        assert disk is not None, "the machine has no disk"
        return CopiedImages(self._app, disk, (self._memory, files), self.reading)


class StrawmanOpt(Baseline):
    """Loads nothing ahead of need."""

    def load(self, model: str, size: int | None) -> None:
        """Load nothing: no memory is held between requests."""
        del model, size
        self._memory.unreserve()


class Strawman(StrawmanOpt):
    """Reads, then decrypts, then computes."""

    overlaps = False
    reading = ReadFirst


class NwBase(Baseline):
    """An application that is a process of the guest. There is no secure OS from which it has a secret."""

    def __init__(self, root: bytes, *others: Any, **more: Any) -> None:
        """As InsideApp; `root`: the device's root secret, 32 bytes."""
        super().__init__(*others, **more)
        self._app.do(Ask.SECRET, payload=root)


def maker(baseline: str, root: Callable[[], bytes]) -> Callable[..., InsideApp]:
    """Return what makes the application of a baseline, as InsideApp is made; `root` reads the root secret."""
    if baseline == "nw-base":
        secret = root()
        return lambda *others, **more: NwBase(secret, *others, **more)
    return {"strawman": Strawman, "strawman-opt": StrawmanOpt}[baseline]
