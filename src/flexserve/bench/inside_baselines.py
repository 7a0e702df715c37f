"""What FlexServe is measured against where the secure world is inside of the emulated machine.

    strawman      all ciphertext of a model is read, then all of it is decrypted, then the prompt is computed
    strawman-opt  a chunk is read while others are decrypted, and the prompt is computed meanwhile
    nw-base       the same application as a process of the guest, where nothing protects it

Application, messages, scheduler and images are those of FlexServe, and as many chunks are decrypted at once.
Contiguous memory for the strawmen is a parameter of the driver, and a recall of everything frees it after a
request; whoever measures does both.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from flexserve.tee_client.app import InsideApp
from flexserve.tee_client.files import ImageFile, SealedFiles
from flexserve.tee_client.link import Link
from flexserve.tee_client.messages import Ask

BASELINES = ("strawman", "strawman-opt", "nw-base")


class ReadFirst(ImageFile):
    """An image that is read whole before its first chunk is given out. Thread-safe."""

    def __init__(self, fd: int, salt: bytes, sizes: Sequence[int]) -> None:
        super().__init__(fd, salt, sizes)
        self._reading = threading.Lock()
        self._read: dict[int, bytes] = {}

    def chunk(self, number: int) -> bytes:
        """Return a chunk, having read all of them, unless it was read already. Raises as ImageFile's."""
        with self._reading:
            if number not in self._read:
                self._read = {each: super(ReadFirst, self).chunk(each) for each in range(self.count)}
            return self._read.pop(number)


class StrawmanOpt(InsideApp):
    """Loads nothing ahead of need."""

    def load(self, model: str, size: int | None) -> None:
        """Load nothing: no memory is held between requests."""
        del model, size
        self._memory.unreserve()


class Strawman(StrawmanOpt):
    """Reads, then decrypts, then computes."""

    overlaps = False

    def __init__(self, link: Link, files: SealedFiles, *others: Any, **more: Any) -> None:
        """As InsideApp."""
        files.image_file = ReadFirst
        super().__init__(link, files, *others, **more)


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
