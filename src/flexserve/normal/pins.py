"""The models whose weights a person wants kept in memory: a small file, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

from flexserve.errors import CallerError, NormalWorldError
from flexserve.protocol.bounds import MAX_PINS
from flexserve.protocol.messages import Pin

_MAX_FILE = 64 << 10  # bytes


class Pins:
    """The names of pinned models, kept in `path` (None: in memory only). The file need not exist.

    Raises CallerError when the file is not a list of models' names.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._names = () if path is None else _read(path)

    @property
    def names(self) -> tuple[str, ...]:
        """The pinned models, sorted."""
        return self._names

    def replace(self, names: Iterable[str]) -> None:
        """Pin `names` and no others. Raises CallerError, NormalWorldError; nothing is changed then."""
        wanted = tuple(sorted(set(names)))
        if len(wanted) > MAX_PINS:
            raise CallerError(f"More than {MAX_PINS} models cannot be pinned.", hint="Unpin some.")
        if self._path is not None:
            _write(self._path, wanted)
        self._names = wanted


def _read(path: Path) -> tuple[str, ...]:
    try:
        with path.open("rb") as file:
            names = msgspec.json.decode(file.read(_MAX_FILE))
        return tuple(sorted(set(msgspec.convert({"type": "Pin", "models": names}, Pin).models)))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise NormalWorldError(
            f"{path} cannot be read: {error.strerror}.", hint="Check its permissions."
        ) from None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise CallerError(f"{path} is not a list of models.", hint="Correct or remove it.") from None


def _write(path: Path, names: tuple[str, ...]) -> None:
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with open(descriptor, "wb") as file:
            file.write(msgspec.json.encode(names) + b"\n")
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
