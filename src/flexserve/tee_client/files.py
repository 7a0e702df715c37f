"""The sealed store as the normal world sees it: labels, ciphertext, and places for more of it.

Nothing here is verified: who has the key does that, and refuses what is not genuine.

    ROOT/models/NAME.flex                       as trusted/store has them
    ROOT/images/MODEL_ID-inside.block           the first block of such a file, as the application wants it
    ROOT/images/MODEL_ID-inside.img             weights, as the trusted application has them in memory

The last one is where there is no disk of the guest's. Then conversations are in files, too (kept_kv).
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from flexserve.errors import FlexServeError, StoredDataError, UnknownModelError
from flexserve.protocol.model_options import KvType
from flexserve.tee_client.messages import MOST_PAYLOAD, opening
from flexserve.trusted.store.aead import SALT_SIZE, TAG_SIZE
from flexserve.trusted.store.container import chunk_length, chunk_offset, file_size
from flexserve.trusted.store.derived import block_name
from flexserve.trusted.store.files import (
    NewFile,
    disk_errors,
    read_errors,
    read_exact,
    require_room,
    unlink,
    write_all,
)
from flexserve.trusted.store.manifest import BLOCK_SIZE, CHUNK, Manifest, bad, is_name, read_label

_MAGIC = b"FLEXINIM"
_PRELUDE = struct.Struct(f"<8sI{SALT_SIZE}s")
_LENGTH = struct.Struct("<I")
_MOST_CHUNKS = 1 << 16
_READ_ONLY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class SealedFile:
    """An open .flex file. `blocks`: its first one, for the keys that may want it; `block`: the one to use."""

    def __init__(self, fd: int, manifest: Manifest, blocks: Sequence[bytes]) -> None:
        self._fd, self.manifest, self.blocks = fd, manifest, blocks
        self.block = blocks[0]

    def opening(self, kv: KvType) -> bytes:
        """Return what the application opens the model with: how it is sealed, and its metadata, sealed.

        `kv`: as what it keeps KV. Raises StoredDataError when the metadata are more than one message has.
        """
        manifest = self.manifest
        wrapped = read_label(self.block).wrapped_key
        sealed = opening(manifest.id_bytes, bytes.fromhex(manifest.salt), bytes.fromhex(wrapped), kv)
        count = -(-manifest.metadata_bytes // CHUNK)
        if len(sealed) + count * (CHUNK + TAG_SIZE) > MOST_PAYLOAD:
            raise bad("its metadata are longer than the secure world takes in")
        return sealed + b"".join(self.chunk(number) for number in range(count))

    @property
    def data(self) -> range:
        """Numbers of the chunks that have weights."""
        return range(self.manifest.metadata_bytes // CHUNK, self.manifest.chunks)

    def chunk(self, number: int) -> bytes:
        """Return a chunk of ciphertext, with its tag. Raises StoredDataError and NormalWorldError."""
        size = chunk_length(self.manifest, number) + TAG_SIZE
        return _read(self._fd, size, chunk_offset(number), f"chunk {number} of {self.manifest.name}")

    def close(self) -> None:
        """Close it. Always safe."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> SealedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ImageFile:
    """An open image of weights: its salt, and chunks with their tags."""

    def __init__(self, fd: int, salt: bytes, sizes: Sequence[int]) -> None:
        self._fd, self.salt = fd, salt
        self._places: list[tuple[int, int]] = []
        place = _PRELUDE.size + _LENGTH.size * len(sizes)
        for size in sizes:
            self._places.append((place, size))
            place += size

    @property
    def count(self) -> int:
        """How many chunks it has."""
        return len(self._places)

    def chunk(self, number: int) -> bytes:
        """Return a chunk. Raises StoredDataError and NormalWorldError."""
        place, size = self._places[number]
        return _read(self._fd, size, place, "an image of weights")

    def close(self) -> None:
        """Close it. Always safe."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class SealedFiles:
    """The files of one store. Any thread: all state is files."""

    def __init__(self, root: Path, make_models_ready: Callable[[], None] = lambda: None) -> None:
        """`make_models_ready` has blocks made for models that the application cannot open yet."""
        self.root = root
        self._models, self._images = root / "models", root / "images"
        self._make_models_ready = make_models_ready

    # ---- models -----------------------------------------------------------------------------------

    def manifests(self) -> list[Manifest]:
        """Return what the sound models' labels say, by name. Raises NormalWorldError."""
        with disk_errors(f"Listing {self._models}"):
            names = sorted(path.stem for path in self._models.glob("*.flex"))
        found = []
        for name in names:
            with contextlib.suppress(StoredDataError, UnknownModelError):
                found.append(self.manifest(name))
        return found

    def manifest(self, name: str) -> Manifest:
        """Return what a model's label says. Raises as `open`."""
        with self.open(name) as file:
            return file.manifest

    def open(self, name: str) -> SealedFile:
        """Open a model's file. Raises UnknownModelError, StoredDataError and NormalWorldError."""
        path = self._models / f"{name}.flex"
        if not (is_name(name) and os.path.lexists(path)):
            raise UnknownModelError(
                f"There is no model named {name[:64]!r}.", hint="`flexserve list` shows those that there are."
            )
        with disk_errors(f"Opening {path.name}"):
            fd = os.open(path, _READ_ONLY)
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise bad("it is not a regular file")
            with read_errors("a sealed model"):
                manifest = read_label(own := os.pread(fd, BLOCK_SIZE, 0))
            if info.st_size != file_size(manifest) or manifest.name != name:
                raise bad("its size, or its name, is not what it says")
        except BaseException:
            os.close(fd)
            raise
        made = self._block(manifest)
        return SealedFile(fd, manifest, [own] if made is None else [made, own])

    def _block(self, manifest: Manifest) -> bytes | None:
        try:
            block = (self._images / block_name(manifest.model_id)).read_bytes()
            return block if read_label(block).model_id == manifest.model_id else None
        except (OSError, StoredDataError):
            return None

    def other_block(self, refused: SealedFile) -> bool:
        """Have a block made for a model whose one the application refused; return whether there is another.

        Raises NormalWorldError when nobody can make one now.
        """
        self._make_models_ready()
        return self._block(refused.manifest) not in (None, *refused.blocks)

    # ---- images -----------------------------------------------------------------------------------

    def has_image(self, manifest: Manifest) -> bool:
        """Return whether there is an image of a model's weights, good or not."""
        return self._image(manifest).exists()

    def open_image(self, manifest: Manifest) -> ImageFile | None:
        """Return the image of a model's weights; None: there is none that could be one."""
        try:
            fd = os.open(self._image(manifest), _READ_ONLY)
        except OSError:
            return None
        try:
            magic, count, salt = _PRELUDE.unpack(_read(fd, _PRELUDE.size, 0, "an image of weights"))
            if magic == _MAGIC and count <= _MOST_CHUNKS:
                table = _read(fd, _LENGTH.size * count, _PRELUDE.size, "an image of weights")
                sizes = [size for (size,) in _LENGTH.iter_unpack(table)]
                if all(size <= MOST_PAYLOAD for size in sizes):
                    return ImageFile(fd, salt, sizes)
        except FlexServeError:
            pass
        os.close(fd)
        return None

    def require_room(self, manifest: Manifest) -> None:
        """Raise NormalWorldError when the host's disk has no room for an image of a model's weights."""
        require_room(self._images, manifest.size, "Writing an image of weights")

    def write_image(self, manifest: Manifest, count: int, sealed: Iterator[tuple[bytes, bytes]]) -> None:
        """Write the image of a model's weights, whole or not at all. Raises NormalWorldError.

        `sealed` are its `count` chunks, each with the salt, which is that of all.
        """
        self.require_room(manifest)
        with disk_errors("Writing an image of weights"), NewFile(self._image(manifest)) as file:
            place, sizes, salt = _PRELUDE.size + _LENGTH.size * count, list[int](), b""
            for each, chunk in sealed:
                salt = each
                write_all(file.fd, [memoryview(chunk)], place)
                place += len(chunk)
                sizes.append(len(chunk))
            head = _PRELUDE.pack(_MAGIC, count, salt) + b"".join(map(_LENGTH.pack, sizes))
            write_all(file.fd, [memoryview(head)], 0)
            file.publish_over()

    def drop_image(self, manifest: Manifest) -> None:
        """Remove the image of a model's weights. Always safe."""
        with contextlib.suppress(OSError):
            unlink(self._image(manifest))

    def _image(self, manifest: Manifest) -> Path:
        return self._images / f"{manifest.model_id}-inside.img"


def _read(fd: int, size: int, offset: int, what: str) -> bytes:
    data = bytearray(size)
    read_exact(fd, [memoryview(data)], offset, what)
    return bytes(data)
