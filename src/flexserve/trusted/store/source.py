"""Where a GGUF that is to be sealed comes from: a file, the parts of a split model, a download."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Protocol

from flexserve.errors import CallerError
from flexserve.trusted.store.files import ShortFileError, read_exact
from flexserve.trusted.store.gguf import Read


class Source(Protocol):
    """The bytes of one GGUF. Its header is read first, then all of it, once, from front to back."""

    @property
    def size(self) -> int:
        """Bytes of the GGUF."""

    @property
    def identity(self) -> str:
        """64 hexadecimal digits that differ where the bytes might: an interrupted sealing goes on by them."""

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `offset` on. Raises CallerError or NormalWorldError."""

    def saw(self, text: memoryview) -> None:
        """Be told of the next bytes that were sealed, from here or from an earlier try."""

    def check(self, digest: str, /) -> None:
        """Raise CallerError when what was sealed, of SHA-256 `digest`, is not what should have come."""


def reader(source: Source) -> Read:
    """Return `source` as what the reader of headers reads: `read(offset, length)`."""

    def read(offset: int, length: int) -> bytes:
        data = bytearray(max(0, min(length, source.size - offset)))
        source.read_into(offset, memoryview(data))
        return bytes(data)

    return read


class FileSource:
    """A GGUF file of this machine. A context manager: leaving it closes the file."""

    def __init__(self, path: Path, sha256: str = "") -> None:
        """Open the file `path`. Raises CallerError when it is none.

        `sha256`: what its digest has to be, in hexadecimal ("": whatever it is).
        """
        self.path = path
        self._sha256 = sha256
        try:
            # O_NONBLOCK: opening a pipe must not hang.
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise CallerError(
                f"{path} cannot be read: {os.strerror(error.errno or 0)}.", hint="Check the path."
            ) from None
        self._before = os.fstat(self._fd)
        if not stat.S_ISREG(self._before.st_mode):
            os.close(self._fd)
            raise CallerError(f"{path} is not a file.", hint="Name a GGUF file.")

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._before.st_size

    @property
    def identity(self) -> str:
        """Its device, number, size and time, as 64 hexadecimal digits."""
        found = self._before
        return f"{found.st_dev:016x}{found.st_ino:016x}{found.st_size:016x}{found.st_mtime_ns:016x}"[-64:]

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `offset` on. Raises CallerError when the file got shorter."""
        try:
            read_exact(self._fd, [target], offset, "the GGUF file")
        except ShortFileError:
            raise changed("The GGUF file") from None

    def saw(self, text: memoryview) -> None:
        """Nothing is to be done: the digest of the whole tells."""

    def check(self, digest: str, /) -> None:
        """Raise CallerError when the file changed while it was read, or is not the one that was meant."""
        # The header that was checked must be the header that was sealed. This catches accidents;
        # a forger who resets the times gets a model whose header is checked again at every open.
        after = os.fstat(self._fd)
        if (after.st_size, after.st_mtime_ns) != (self._before.st_size, self._before.st_mtime_ns):
            raise changed(str(self.path))
        check_digest(str(self.path), self._sha256, digest)

    def close(self) -> None:
        """Close the file. Always safe."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> FileSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_digest(what: str, wanted: str, found: str) -> None:
    """Raise CallerError when `what` has another SHA-256 than `wanted` ("": any will do)."""
    if wanted and wanted != found:
        raise CallerError(
            f"{what} is not what it should be: its SHA-256 is {found}, not {wanted}.",
            hint="Get it again. If it stays so, the copy or the digest is wrong: do not use it.",
            code="digest_mismatch",
        )


def changed(what: str) -> CallerError:
    """Return the error that says that a source changed."""
    return CallerError(f"{what} changed while it was added.", hint="Add it when it is complete.")
