"""Where sealed conversations are kept: in the store's folder, or on a disk of the guest's."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from flexserve.errors import FlexServeError
from flexserve.platforms.trustzone.disk_image import SLOT, TAG, DiskImage, damaged, name_of
from flexserve.trusted.store.aead import SALT_SIZE
from flexserve.trusted.store.files import NewFile, disk_errors, read_exact, write_all
from flexserve.trusted.store.manifest import Manifest

HEAD = 8 + SALT_SIZE + 16  # bytes that say how a conversation is taken in again
_MAGIC = b"FLEXINKV"
_READ_ONLY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class KeptKv(Protocol):
    """Sealed conversations by name. Nothing here is verified: who takes them in does that."""

    def heads(self, manifest: Manifest) -> list[tuple[str, bytes]]:
        """Return the names of what is kept of a model, each with its head of HEAD bytes; the newest first."""

    def write(self, manifest: Manifest, head: bytes, parts: Iterable[bytes]) -> str:
        """Keep a conversation of a model; return its name. What is torn does not authenticate later.

        Raises StoredDataError and NormalWorldError.
        """

    def read(self, name: str, sizes: Sequence[int]) -> Iterator[bytes]:
        """Yield the parts of one, which have these sizes. Raises as `write`."""

    def forget(self, name: str) -> None:
        """Remove one. Always safe."""


class KvFiles:
    """In files: ROOT/kv/MODEL_ID-inside-RANDOM.kv."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "kv"

    def heads(self, manifest: Manifest) -> list[tuple[str, bytes]]:
        """As KeptKv has it."""
        found = []
        for path in self._folder.glob(f"{manifest.model_id}-inside-*.kv"):
            with contextlib.suppress(OSError):
                fd = os.open(path, _READ_ONLY)
                try:
                    data, written = os.read(fd, len(_MAGIC) + HEAD), os.fstat(fd).st_mtime_ns
                finally:
                    os.close(fd)
                if data.startswith(_MAGIC) and len(data) == len(_MAGIC) + HEAD:
                    found.append((written, path.name, data[len(_MAGIC) :]))
        return [(name, head) for _, name, head in sorted(found, reverse=True)]

    def write(self, manifest: Manifest, head: bytes, parts: Iterable[bytes]) -> str:
        """As KeptKv has it."""
        path = self._folder / f"{manifest.model_id}-inside-{secrets.token_hex(16)}.kv"
        with disk_errors("Sealing KV"), NewFile(path) as file:
            place = 0
            for part in itertools.chain([_MAGIC + head], parts):
                write_all(file.fd, [memoryview(part)], place)
                place += len(part)
            file.publish_over(durable=False)
        return path.name

    def read(self, name: str, sizes: Sequence[int]) -> Iterator[bytes]:
        """As KeptKv has it."""
        path = self._folder / name
        with disk_errors("Reading sealed KV"):
            fd = os.open(path, _READ_ONLY)
        try:
            place = len(_MAGIC) + HEAD
            for size in sizes:
                data = bytearray(size)
                read_exact(fd, [memoryview(data)], place, "sealed KV")
                yield bytes(data)
                place += size
        finally:
            os.close(fd)

    def forget(self, name: str) -> None:
        """As KeptKv has it."""
        with contextlib.suppress(OSError):
            (self._folder / name).unlink()


class KvOnDisk:
    """On a disk of the guest's: an object for each, whose pieces have whole parts."""

    def __init__(self, image: DiskImage) -> None:
        self._image = image

    def heads(self, manifest: Manifest) -> list[tuple[str, bytes]]:
        """As KeptKv has it."""
        of_model = name_of("kv", manifest.model_id, "")
        kept = [each for each in self._image.objects().values() if each.name.startswith(of_model)]
        return [(each.name, each.head) for each in reversed(kept) if len(each.head) == HEAD]

    def write(self, manifest: Manifest, head: bytes, parts: Iterable[bytes]) -> str:
        """As KeptKv has it."""
        name = name_of("kv", manifest.model_id, secrets.token_hex(16))
        self._image.put(name, head, ((piece, bytes(TAG)) for piece in _pieces(parts)))
        return name

    def read(self, name: str, sizes: Sequence[int]) -> Iterator[bytes]:
        """As KeptKv has it."""
        stored = self._image.objects().get(name)
        if stored is None or sum(piece.size for piece in stored.pieces) != sum(sizes):
            raise damaged("it has no such KV, or a write of it was torn")
        rest = iter(sizes)
        for piece in stored.pieces:
            data, place = self._image.read(piece), 0
            while place < len(data):
                size = next(rest, 0)
                if not 0 < size <= len(data) - place:
                    raise damaged("a conversation is cut where none was")
                yield data[place : place + size]
                place += size

    def forget(self, name: str) -> None:
        """As KeptKv has it."""
        with contextlib.suppress(FlexServeError):
            self._image.remove(name)


def _pieces(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield parts in pieces that fit into a slot, each of whole ones."""
    piece = b""
    for part in parts:
        if len(piece) + len(part) > SLOT:
            yield piece
            piece = b""
        piece += part
    yield piece
