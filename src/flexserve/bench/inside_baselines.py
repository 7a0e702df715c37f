"""What FlexServe is measured against where the secure world is inside of the emulated machine.

    strawman      all ciphertext of a model is read, then all of it is decrypted, then the prompt is computed
    strawman-opt  while a chunk is decrypted, the next one is read
    nw-base       the same application as a process of the guest, where nothing protects it

Application, messages, scheduler and images are those of FlexServe. Contiguous memory for the strawmen is a
parameter of the driver, and a recall of everything frees it after a request; whoever measures does both. No
system computes before all weights are there: the application begins no graph without them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from flexserve.tee_client.app import InsideApp
from flexserve.tee_client.files import ImageFile, SealedFiles
from flexserve.tee_client.link import Link
from flexserve.tee_client.messages import Ask

BASELINES = ("strawman", "strawman-opt", "nw-base")


class ReadFirst(ImageFile):
    """An image that is read to its end before its first chunk is given out."""

    def __init__(self, fd: int, salt: bytes, sizes: Sequence[int]) -> None:
        super().__init__(fd, salt, sizes)
        self._read: dict[int, bytes] = {}

    def chunk(self, number: int) -> bytes:
        """Return a chunk, having read all that follow, unless it was read already. Raises as ImageFile's."""
        if number not in self._read:
            self._read = {each: ImageFile.chunk(self, each) for each in range(number, self.count)}
        return self._read.pop(number)


class ReadAhead(ImageFile):
    """An image of which the next chunk is read while the last one is in use."""

    def __init__(self, fd: int, salt: bytes, sizes: Sequence[int]) -> None:
        super().__init__(fd, salt, sizes)
        self._reader = ThreadPoolExecutor(1, "read-ahead")
        self._coming: dict[int, Future[bytes]] = {}

    def chunk(self, number: int) -> bytes:
        """Return a chunk, and begin to read the next one. Raises as ImageFile's."""
        coming = self._coming.pop(number, None)
        data = ImageFile.chunk(self, number) if coming is None else coming.result()
        self._coming.clear()
        if number + 1 < self.count:
            self._coming[number + 1] = self._reader.submit(ImageFile.chunk, self, number + 1)
        return data

    def close(self) -> None:
        """Close it. Always safe."""
        self._reader.shutdown()
        super().close()


class Strawman(InsideApp):
    """Loads nothing ahead of need; `reading`: how it reads images."""

    reading: type[ImageFile] = ReadFirst

    def __init__(self, link: Link, files: SealedFiles, *others: Any, **more: Any) -> None:
        """As InsideApp."""
        files.image_file = self.reading
        super().__init__(link, files, *others, **more)

    def load(self, model: str, size: int | None) -> None:
        """Load nothing: no memory is held between requests."""
        del model, size
        self._memory.unreserve()


class StrawmanOpt(Strawman):
    """Reads the next chunk while it decrypts one."""

    reading = ReadAhead


class NwBase(InsideApp):
    """An application that is a process of the guest. There is no secure OS from which it has a secret."""

    def __init__(self, root: bytes, link: Link, *others: Any, **more: Any) -> None:
        """As InsideApp; `root`: the device's root secret, 32 bytes."""
        super().__init__(link, *others, **more)
        self._app.do(Ask.SECRET, payload=root)


def maker(baseline: str, root: Callable[[], bytes]) -> Callable[..., InsideApp]:
    """Return what makes the application of a baseline, as InsideApp is made; `root` reads the root secret."""
    if baseline == "nw-base":
        secret = root()
        return lambda *others, **more: NwBase(secret, *others, **more)
    return {"strawman": Strawman, "strawman-opt": StrawmanOpt}[baseline]
