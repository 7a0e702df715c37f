"""The derived image: llama.cpp's weight buffers as they stand after loading, encrypted.

An image saves repacking at each restore. It is derived: bound to the CPU's features and the
llama.cpp version by its fingerprint, and rebuilt from the .flex file whenever it is absent, stale
or damaged.

    magic "FLEXIMAG", u32 version, u64 index length, salt, index tag
    index, encrypted: fingerprint, buffers, chunk size, extra, the tag of every chunk
    zeros up to a multiple of ALIGN, then each buffer's ciphertext, padded to ALIGN

Chunks carry no tag of their own, so that a chunk's ciphertext is page-aligned in the file, has
exactly its plaintext's length, and can be read by one `preadv` straight into the pages it is
meant for, and decrypted there. The tags are authenticated with the index, under a key that only
this device can derive.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import secrets
import stat
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated

import msgspec
from msgspec import Meta

from flexserve.errors import StoredDataError
from flexserve.trusted.store.aead import SALT_SIZE, TAG_SIZE, ChunkCipher
from flexserve.trusted.store.container import SealedModel
from flexserve.trusted.store.files import NewFile, disk_errors, read_exact, require_room, write_all
from flexserve.units import align_up

VERSION = 1
ALIGN = 4096  # bytes; a page, and what direct I/O asks for
MAX_CHUNK = 64 << 20  # bytes
MAX_BUFFERS = 1024
MAX_CHUNKS = 1 << 21
MAX_INDEX = 64 << 20  # bytes

_MAGIC = b"FLEXIMAG"
_KIND = b"image"
_PRELUDE = struct.Struct(f"<8sIQ{SALT_SIZE}s{TAG_SIZE}s")
_READ_AHEAD = 128 << 10  # bytes; the kernel's default window
_INDEX_STREAM = 0xFFFF_FFFF  # the index's nonces; buffers count from 0 and never get here


class StaleImageError(StoredDataError):
    """There is no image for this CPU and this llama.cpp: rebuild it."""

    default_code = "image_stale"


class DamagedImageError(StoredDataError):
    """What stands in the image's place is not what was written there. The model is sound: rebuild it."""

    default_code = "image_damaged"


class BufferSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of llama.cpp's buffers: its name and its size in bytes."""

    name: Annotated[str, Meta(max_length=256)]
    size: Annotated[int, Meta(ge=1, lt=1 << 50)]


class _Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    fingerprint: str
    buffers: Annotated[tuple[BufferSpec, ...], Meta(max_length=MAX_BUFFERS)]
    chunk: Annotated[int, Meta(ge=ALIGN, le=MAX_CHUNK, multiple_of=ALIGN)]
    extra: bytes
    tags: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """Where a chunk lies."""

    offset: int  # bytes in the file
    length: int  # bytes
    number: int  # among all chunks of the image
    total: int  # chunks in its buffer


class _Layout:
    """Places of all chunks: a function of the buffers, the chunk size and the start of the data."""

    def __init__(self, buffers: Sequence[BufferSpec], chunk: int, start: int) -> None:
        self._sizes = [buffer.size for buffer in buffers]
        self._chunk = chunk
        self._counts = [-(-size // chunk) for size in self._sizes]
        spans = [align_up(size, ALIGN) for size in self._sizes]
        self._starts = list(itertools.accumulate(spans, initial=start))
        self._numbers = list(itertools.accumulate(self._counts, initial=0))
        self.chunks = self._numbers[-1]
        self.end = self._starts[-1]  # bytes; the size of the file

    def place(self, buffer: int, index: int) -> _Place:
        """Return where chunk `index` of `buffer` lies. Raises IndexError if there is none."""
        if not (0 <= buffer < len(self._sizes) and 0 <= index < self._counts[buffer]):
            raise IndexError(f"no chunk {index} in buffer {buffer}")
        return _Place(
            self._starts[buffer] + index * self._chunk,
            min(self._chunk, self._sizes[buffer] - index * self._chunk),
            self._numbers[buffer] + index,
            self._counts[buffer],
        )


class ImageWriter:
    """Writes an image; it appears under its path with `finish`, and not before.

    A context manager: leaving it without `finish` removes what was written. Thread-safe.
    """

    def __init__(
        self,
        path: Path,
        sealed: SealedModel,
        fingerprint: str,
        buffers: Sequence[BufferSpec],
        chunk: int,
        *,
        extra: bytes = b"",
    ) -> None:
        """Start the image of `sealed` at `path`, in chunks of `chunk` bytes (a multiple of ALIGN).

        `extra` is kept, encrypted, for the engine. Raises NormalWorldError when the disk has no
        room (code "disk_full") or refuses, ValueError for a layout that no image can have.
        """
        if chunk % ALIGN or not ALIGN <= chunk <= MAX_CHUNK:
            raise ValueError(f"chunk size {chunk} is not a multiple of {ALIGN} up to {MAX_CHUNK}")
        count = _Layout(buffers, chunk, 0).chunks
        self._index = _Index(fingerprint, tuple(buffers), chunk, extra, bytes(TAG_SIZE * count))
        self._tags = bytearray(TAG_SIZE * count)
        encoded = _encode(self._index)
        self._layout = _Layout(buffers, chunk, align_up(_PRELUDE.size + len(encoded), ALIGN))
        self._salt = secrets.token_bytes(SALT_SIZE)
        self._cipher = _cipher(sealed, self._salt)
        self._scratch = memoryview(bytearray(chunk))
        self._missing = set(range(count))
        self._failed = False
        self._lock = threading.Lock()
        self._action = f"Writing the image of {sealed.manifest.name}"
        require_room(path.parent, self._layout.end, self._action)
        with disk_errors(self._action):
            self._file = NewFile(path)

    def write(self, buffer: int, index: int, plaintext: memoryview) -> None:
        """Encrypt and write chunk `index` of `buffer`, each exactly once, in any order.

        Raises ValueError for a wrong length or a second write, NormalWorldError when the disk
        refuses: the image cannot be finished after that.
        """
        place = self._layout.place(buffer, index)
        if len(plaintext) != place.length:
            raise ValueError(f"chunk {index} of buffer {buffer} has {place.length} bytes")
        with self._lock:
            if place.number not in self._missing:
                raise ValueError(f"chunk {index} of buffer {buffer} was written already")
            self._missing.remove(place.number)  # first: its nonce is used from here on
            try:
                self._write(place, buffer, index, plaintext)
            except BaseException:
                self._failed = True
                raise

    def _write(self, place: _Place, buffer: int, index: int, plaintext: memoryview) -> None:
        target = self._scratch[: place.length]
        tag = self._cipher.encrypt(buffer, index, place.total, plaintext.cast("B"), target)
        with disk_errors(self._action):
            write_all(self._file.fd, [target], place.offset)
        self._tags[place.number * TAG_SIZE : (place.number + 1) * TAG_SIZE] = tag

    def flush(self) -> None:
        """Have the disk take what was written so far, of which `finish` would wait for all at once.

        Raises NormalWorldError when the disk refuses.
        """
        with disk_errors(self._action):
            os.fdatasync(self._file.fd)

    def finish(self, *, durable: bool = True) -> None:
        """Publish the image in place of an older one; not `durable`: a power failure may undo or tear it.

        Raises ValueError when chunks are missing, NormalWorldError when the disk refuses.
        """
        if self._missing or self._failed:
            raise ValueError(f"{len(self._missing)} chunks of the image are missing, or one failed")
        index = _encode(msgspec.structs.replace(self._index, tags=bytes(self._tags)))
        sealed = memoryview(bytearray(len(index)))
        tag = self._cipher.encrypt(_INDEX_STREAM, 0, 1, index, sealed)
        prelude = _PRELUDE.pack(_MAGIC, VERSION, len(index), self._salt, tag)
        with disk_errors(self._action), self._file:
            os.ftruncate(self._file.fd, self._layout.end)
            write_all(self._file.fd, [memoryview(prelude), sealed], 0)
            self._file.publish_over(durable=durable)

    def abort(self) -> None:
        """Remove what was written. Always safe, also after `finish`."""
        self._file.discard()

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


class Image:
    """An opened image whose index was authenticated. Thread-safe until `close`."""

    def __init__(self, fd: int, index: _Index, layout: _Layout, cipher: ChunkCipher) -> None:
        self.buffers = index.buffers
        self.chunk = index.chunk  # bytes
        self.extra = index.extra
        self._fd = fd
        self._layout = layout
        self._cipher = cipher
        self._tags = index.tags

    @classmethod
    def open(cls, path: Path, sealed: SealedModel, fingerprint: str) -> Image:
        """Open the image of `sealed` at `path`.

        Raises StaleImageError when there is none, or one for another CPU, llama.cpp or image
        version; DamagedImageError when it is damaged, forged, of another model or on bad blocks;
        NormalWorldError when it cannot be read for another reason. Rebuilding helps in all but the last case.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise StaleImageError("There is no image of the model yet.", hint="Build it.") from None
        except OSError as error:
            raise bad(os.strerror(error.errno or 0)) from None
        try:
            with _image_errors():
                cipher, index, start = _read_index(fd, sealed)
            if index.fingerprint != fingerprint:
                raise StaleImageError("The image is for another CPU or llama.cpp.", hint="Rebuild it.")
            layout = _Layout(index.buffers, index.chunk, start)
            if len(index.tags) != TAG_SIZE * layout.chunks or os.fstat(fd).st_size != layout.end:
                raise bad("its size is not the one in its index")
            return cls(fd, index, layout, cipher)
        except BaseException:
            os.close(fd)
            raise

    def restore(self, buffer: int, index: int, target: memoryview) -> float:
        """Fill `target` with the chunks from `index` of `buffer` on; return seconds of decryption.

        They are authenticated. `target` is writable memory of exactly the length of one chunk or several.
        The kernel writes the ciphertext into it, supplying its pages without the interpreter lock, and it is
        decrypted there. Raises DamagedImageError when one is not what was written (it is zeroed then, and
        others may be ciphertext) or the disk cannot read it, NormalWorldError when the disk does not deliver
        for another reason.
        """
        self.read(buffer, index, target)
        return self.decrypt(buffer, index, target)

    def read(self, buffer: int, index: int, target: memoryview) -> None:
        """Do the first half of `restore`: fill `target` with the ciphertext."""
        place = self._places(buffer, index, target)[0]
        with _image_errors():
            read_exact(self._fd, [target.cast("B")], place.offset, "the image")

    def decrypt(self, buffer: int, index: int, target: memoryview) -> float:
        """Do the second half of `restore`: turn the ciphertext in `target` into plaintext."""
        places = self._places(buffer, index, target)
        target, at = target.cast("B"), 0  # memory of ctypes says "<B", which cannot be assigned to
        begin = time.perf_counter()
        with _image_errors():
            for number, place in enumerate(places, index):
                tag = self._tags[place.number * TAG_SIZE : (place.number + 1) * TAG_SIZE]
                self._cipher.decrypt(buffer, number, place.total, target[at : at + place.length], tag)
                at += place.length
        return time.perf_counter() - begin

    def _places(self, buffer: int, index: int, target: memoryview) -> list[_Place]:
        """Return where the chunks from `index` on lie that fill `target`: one behind the other."""
        count = max(1, -(-len(target) // self.chunk))
        places = [self._layout.place(buffer, number) for number in range(index, index + count)]
        if len(target) != (length := sum(place.length for place in places)):
            which = f"chunks {index} to {index + count - 1} of buffer {buffer}"
            raise ValueError(f"{which} have {length} bytes, not {len(target)}")
        return places

    def prefetch(self, buffer: int, index: int, count: int) -> None:
        """Ask the OS to read `count` chunks from `index` of `buffer` ahead, up to the buffer's end.

        Does not wait for them. Raises IndexError when there is no chunk `index`.
        """
        first = self._layout.place(buffer, index)
        last = self._layout.place(buffer, min(index + max(count, 1), first.total) - 1)
        if self._is_cached(last.offset + last.length - 1):
            return  # and so, most likely, is what comes before it: asking takes a tenth of a restore's time
        with disk_errors("Reading the image ahead"):
            # One call reads no more than the disk's read-ahead setting, so it takes several.
            for offset in range(first.offset, last.offset + last.length, _READ_AHEAD):
                os.posix_fadvise(self._fd, offset, _READ_AHEAD, os.POSIX_FADV_WILLNEED)

    def _is_cached(self, offset: int) -> bool:
        """Return whether the byte at `offset` is in the page cache."""
        try:
            return os.preadv(self._fd, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
        except OSError:
            return False  # it is not, or this file system does not tell

    def close(self) -> None:
        """Close the file. Always safe; no other call may be under way or follow."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Image:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def bad(what: str) -> DamagedImageError:
    """Return the error that says what is wrong with an image."""
    return DamagedImageError(
        f"The image is not usable: {what}.",
        hint="Check the disk, and try again: the image is made anew from the sealed model.",
    )


@contextlib.contextmanager
def _image_errors() -> Iterator[None]:
    """Tell damage to an image from damage to a model: the readers below do not know which they read."""
    try:
        yield
    except (DamagedImageError, StaleImageError):
        raise
    except StoredDataError as error:
        raise bad(f"{error.message[:1].lower()}{error.message[1:].rstrip('.')}") from None


def _cipher(sealed: SealedModel, salt: bytes) -> ChunkCipher:
    return ChunkCipher(sealed.model_key, salt, _KIND, VERSION, sealed.manifest.id_bytes)


def _encode(index: _Index) -> bytes:
    """Return `index` as bytes. Raises ValueError when it is beyond what an image can have."""
    encoded = msgspec.msgpack.encode(index)
    if len(encoded) > MAX_INDEX or len(index.tags) > TAG_SIZE * MAX_CHUNKS:
        raise ValueError("an image of that many chunks, or with that much extra, is not possible")
    msgspec.msgpack.decode(encoded, type=_Index)  # the reader's bounds hold for the writer
    return encoded


def _read_index(fd: int, sealed: SealedModel) -> tuple[ChunkCipher, _Index, int]:
    """Return the cipher, the authenticated index and where the data starts."""
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_size < _PRELUDE.size:
        raise bad("it is not a file of a possible length")
    prelude = memoryview(bytearray(_PRELUDE.size))
    read_exact(fd, [prelude], 0, "the image")
    magic, version, length, salt, tag = _PRELUDE.unpack(prelude)
    if magic != _MAGIC:
        raise bad("it does not start as one")
    if version != VERSION:
        raise StaleImageError(f"The image is of version {version}, not {VERSION}.", hint="Rebuild it.")
    start = align_up(_PRELUDE.size + length, ALIGN)
    if length > MAX_INDEX or start > info.st_size:
        raise bad("its index is longer than can be")
    head = memoryview(bytearray(start - _PRELUDE.size))
    read_exact(fd, [head], _PRELUDE.size, "the image")
    if any(head[length:]):
        raise bad("there is something where nothing should be")
    cipher = _cipher(sealed, salt)
    cipher.decrypt(_INDEX_STREAM, 0, 1, head[:length], tag)
    try:
        return cipher, msgspec.msgpack.decode(head[:length], type=_Index), start
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise bad("its index is not one this program writes") from None
