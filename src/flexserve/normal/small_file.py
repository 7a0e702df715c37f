"""Small files of a person's choices: read within bounds, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from flexserve.errors import NormalWorldError


def read(path: Path, most: int) -> bytes | None:
    """Return the first `most` bytes of a file; None: there is no such file. Raises NormalWorldError."""
    try:
        with path.open("rb") as file:
            return file.read(most)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NormalWorldError(
            f"{path} cannot be read: {error.strerror}.", hint="Check its permissions."
        ) from None


def write(path: Path, content: bytes) -> None:
    """Replace a file's content. Raises NormalWorldError; the file is as it was then."""
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if partial is not None:
            with contextlib.suppress(OSError):
                os.unlink(partial)
        raise NormalWorldError(
            f"{path} cannot be written: {error.strerror}.", hint="Check its permissions."
        ) from None
