"""The models whose weights a person wants kept in memory: a small file, written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from flexserve.errors import CallerError
from flexserve.normal import small_file
from flexserve.protocol.bounds import MAX_PINS
from flexserve.protocol.memory import Pin

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
            small_file.write(self._path, msgspec.json.encode(wanted) + b"\n")
        self._names = wanted


def _read(path: Path) -> tuple[str, ...]:
    content = small_file.read(path, _MAX_FILE)
    if content is None:
        return ()
    try:
        names = msgspec.json.decode(content)
        return tuple(sorted(set(msgspec.convert({"type": "Pin", "models": names}, Pin).models)))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise CallerError(f"{path} is not a list of models.", hint="Correct or remove it.") from None
