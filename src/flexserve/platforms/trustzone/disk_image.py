"""What a disk of the machine has for a secure world inside: a directory at its front, then slots of 2 MiB.

    the directory, twice (1 MiB each) │ slot 1 │ slot 2 │ …

A slot has a piece of an object, or the index of one: which slots its pieces are in, how long they are, and
the tag of each. So a chunk of weights lies alone in one slot, from its beginning on: a disk reads it into
the pages in which it is decrypted.

An object and its index are written to free slots. After they are flushed, the copy of the directory that does
not count is. Both copies say their generation and have a digest: the newest whole one counts. So whatever
breaks off, the disk has the old objects or the new ones. Digests find torn writes, not lies: what a disk has
is ciphertext, and who decrypts it authenticates it. A kernel that lies about it gets no more memory from who
reads it than there are slots.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import struct
import threading
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from flexserve.errors import CallerError, NormalWorldError, StoredDataError
from flexserve.platforms.trustzone.ram import PAGE
from flexserve.units import MIB, format_size

SLOT = 2 * MIB  # bytes; a chunk of weights
SLOT_PAGES = SLOT // PAGE
TAG = 16  # bytes
MOST_SLOTS = 1 << 20
MOST_HEAD = 2048  # bytes of an object's own description
_COPY_PAGES = SLOT_PAGES // 2
_MAGIC, _VERSION = b"FLEXDISK", 1
# Magic, version, slots, objects, sealer, generation; then a digest of all but that.
_HEADER = struct.Struct("<8sIIIIQ")
_DIGEST = hashlib.sha256().digest_size
# Name, slot of the index, its bytes, its digest; last, one of all.
_ENTRY = struct.Struct(f"<128sII{_DIGEST}s")
_INDEX = struct.Struct("<II")  # bytes of the head, pieces; then the head, then pieces
_PIECE = struct.Struct(f"<II{TAG}s")  # slot, bytes, tag
_MOST_OBJECTS = (_COPY_PAGES * PAGE - _HEADER.size - _DIGEST) // _ENTRY.size
_MOST_NAME = 127  # bytes


class Blocks(Protocol):
    """What a disk has, by pages."""

    def read(self, page: int, pages: int) -> bytes:
        """Return `pages` pages from `page` on. Raises StoredDataError, NormalWorldError."""

    def write(self, page: int, data: bytes) -> None:
        """Write `data`; the rest of its last page is anything. Raises as `read`."""

    def flush(self) -> None:
        """Have what was written stay, also when power goes. Raises as `read`."""


class FileBlocks:
    """A disk's file on the host, for who makes it."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises OSError."""
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    @classmethod
    def create(cls, path: Path, size: int) -> Self:
        """Make an empty one of `size` bytes, which takes no room yet. Raises OSError, if it exists, too."""
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        os.truncate(path, size)
        return cls(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def read(self, page: int, pages: int) -> bytes:
        """Return pages, as Blocks has it."""
        data = b""
        while len(data) < pages * PAGE:
            part = os.pread(self._fd, pages * PAGE - len(data), page * PAGE + len(data))
            if not part:
                raise damaged("it ends too early")
            data += part
        return data

    def write(self, page: int, data: bytes) -> None:
        """Write pages, as Blocks has it."""
        view, at = memoryview(data), page * PAGE
        while view:
            done = os.pwrite(self._fd, view, at)
            view, at = view[done:], at + done

    def flush(self) -> None:
        """Have them stay."""
        os.fdatasync(self._fd)


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """A part of an object."""

    slot: int
    size: int  # bytes
    tag: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class StoredObject:
    """An object of a disk. `head`: what whoever wrote it says of it."""

    name: str
    head: bytes
    pieces: tuple[Piece, ...]
    index: int  # a slot
    index_bytes: int
    digest: bytes  # of the index

    @property
    def slots(self) -> set[int]:
        """The slots that it uses."""
        return {self.index, *(piece.slot for piece in self.pieces)}


class DiskImage:
    """The objects of a disk. Thread-safe; there is one of these at a time for a disk."""

    def __init__(self, blocks: Blocks) -> None:
        """Read the directory and all indexes. Raises StoredDataError when there is no whole directory."""
        self._blocks = blocks
        self._lock = threading.Lock()  # guards what follows, and is held while a directory is written
        self._reserved = set[int]()  # slots that an object is being written to
        found = [copy for copy in map(self._directory, range(2)) if copy is not None]
        if not found:
            raise damaged("neither copy of its directory is whole")
        self._generation, self.slots, self.sealer, entries = max(found, key=lambda copy: copy[0])
        self._objects = self._read_objects(entries)

    @classmethod
    def create(cls, blocks: Blocks, size: int) -> Self:
        """Make a disk of `size` bytes that has no objects, sealed by 0."""
        slots = size // SLOT
        if slots < 2:
            raise CallerError(
                f"A disk of {format_size(size)} has no room.", hint=f"Give {format_size(2 * SLOT)}."
            )
        blocks.write(_COPY_PAGES, _directory_bytes(slots, 0, 1, {}))
        blocks.write(0, _directory_bytes(slots, 0, 2, {}))
        blocks.flush()
        return cls(blocks)

    # ---- reading ---------------------------------------------------------------------------------

    def objects(self) -> Mapping[str, StoredObject]:
        """Return what is there now, by name. What was torn is not."""
        return self._objects

    def read(self, piece: Piece) -> bytes:
        """Return what a piece has. Raises StoredDataError, NormalWorldError."""
        return self._blocks.read(piece.slot * SLOT_PAGES, -(-piece.size // PAGE))[: piece.size]

    def free(self) -> int:
        """Return the bytes that are free, the room for indexes included."""
        with self._lock:
            return (self.slots - 1 - len(self._used())) * SLOT

    def unused(self) -> list[range]:
        """Return the runs of slots that no object has and nobody writes to."""
        with self._lock:
            used = sorted({0, *self._used(), self.slots})  # the first one has the directory
        return [range(one + 1, next_one) for one, next_one in itertools.pairwise(used) if one + 1 < next_one]

    # ---- writing ---------------------------------------------------------------------------------

    def put(self, name: str, head: bytes, pieces: Iterable[tuple[bytes, bytes]]) -> StoredObject:
        """Write an object, instead of the one that has its name (`name_of`): pieces, each with its tag.

        The slots of the old one are free afterwards: whoever still reads it gets what does not authenticate.
        Raises NormalWorldError (code "disk_full"), and what `pieces` raises; then nothing has changed.
        """
        if "/" not in name or len(name.encode()) > _MOST_NAME or len(head) > MOST_HEAD:
            raise ValueError("no name or head of an object")
        own = set[int]()
        try:
            placed = []
            for data, tag in pieces:
                if not 0 < len(data) <= SLOT or len(tag) != TAG:
                    raise ValueError("no piece of an object")
                placed.append(Piece(self._reserve(own), len(data), tag))
                self._blocks.write(placed[-1].slot * SLOT_PAGES, data)
            index = _INDEX.pack(len(head), len(placed)) + head
            index += b"".join(_PIECE.pack(piece.slot, piece.size, piece.tag) for piece in placed)
            digest = hashlib.sha256(index).digest()
            written = StoredObject(name, head, tuple(placed), self._reserve(own), len(index), digest)
            self._blocks.write(written.index * SLOT_PAGES, index)
            with self._lock:
                self._publish({**self._objects, name: written})
        finally:
            with self._lock:
                self._reserved -= own
        return written

    def remove(self, *names: str) -> None:
        """Remove objects; those that there are not, are not missed."""
        with self._lock:
            rest = {name: each for name, each in self._objects.items() if name not in names}
            if len(rest) < len(self._objects):
                self._publish(rest)

    def keep(self, models: Collection[str], sealer: int) -> None:
        """Remove what belongs to none of `models`, and all of it unless `sealer` (32 bits) sealed it."""
        with self._lock:
            kept = {name: each for name, each in self._objects.items() if _model_of(name) in models}
            if sealer != self.sealer:
                self.sealer, kept = sealer, {}
            elif len(kept) == len(self._objects):
                return
            self._publish(kept)

    def _reserve(self, own: set[int]) -> int:
        """Return a slot that is free, which is then one of a writer's own."""
        with self._lock:
            used = self._used()
            slot = next((slot for slot in range(1, self.slots) if slot not in used), None)
            if slot is None:
                raise _full()
            own.add(slot)
            self._reserved.add(slot)
        return slot

    def _used(self) -> set[int]:
        return self._reserved.union(*(each.slots for each in self._objects.values()))

    def _publish(self, objects: dict[str, StoredObject]) -> None:
        if len(objects) > _MOST_OBJECTS:
            raise _full()
        generation = self._generation + 1
        self._blocks.flush()
        directory = _directory_bytes(self.slots, self.sealer, generation, objects)
        self._blocks.write(generation % 2 * _COPY_PAGES, directory)
        self._blocks.flush()
        self._generation, self._objects = generation, objects

    # ---- the directory ----------------------------------------------------------------------------

    def _directory(self, copy: int) -> tuple[int, int, int, bytes] | None:
        """Return the generation, the slots, the sealer and the entries of a copy; None if it is torn."""
        head = self._blocks.read(copy * _COPY_PAGES, 1)
        magic, version, slots, count, sealer, generation = _HEADER.unpack_from(head)
        if magic != _MAGIC or version != _VERSION or count > _MOST_OBJECTS or slots > MOST_SLOTS:
            return None
        end = _HEADER.size + count * _ENTRY.size
        data = self._blocks.read(copy * _COPY_PAGES, -(-(end + _DIGEST) // PAGE))
        if hashlib.sha256(data[:end]).digest() != data[end : end + _DIGEST]:
            return None
        return generation, slots, sealer, data[_HEADER.size : end]

    def _read_objects(self, entries: bytes) -> dict[str, StoredObject]:
        """Return the objects whose index is whole, and whose slots no other one has."""
        objects, used = dict[str, StoredObject](), set[int]()
        for name, slot, size, digest in _ENTRY.iter_unpack(entries):
            if not 0 < slot < self.slots or slot in used or not _INDEX.size <= size <= SLOT:
                continue
            index = self._blocks.read(slot * SLOT_PAGES, -(-size // PAGE))[:size]
            parsed = self._parsed(index) if hashlib.sha256(index).digest() == digest else None
            if parsed is not None:
                label = name.rstrip(b"\0").decode(errors="replace")
                found = StoredObject(label, *parsed, slot, size, digest)
                if len(found.slots) == len(found.pieces) + 1 and used.isdisjoint(found.slots):
                    objects[label] = found
                    used |= found.slots
        return objects

    def _parsed(self, index: bytes) -> tuple[bytes, tuple[Piece, ...]] | None:
        head, count = _INDEX.unpack_from(index)
        pieces = index[_INDEX.size + head :]
        if count >= self.slots or head > MOST_HEAD:
            return None
        found = tuple(Piece(*piece) for piece in _PIECE.iter_unpack(pieces[: count * _PIECE.size]))
        if len(pieces) != count * _PIECE.size or not all(
            0 < piece.slot < self.slots and 0 < piece.size <= SLOT for piece in found
        ):
            return None
        return index[_INDEX.size : _INDEX.size + head], found


def name_of(kind: str, model: str, *more: str) -> str:
    """Return the name of an object that belongs to a model of the store; `model` is its id."""
    return "/".join([kind, model, *more])


def _model_of(name: str) -> str:
    return name.partition("/")[2].partition("/")[0]


def _directory_bytes(slots: int, sealer: int, generation: int, objects: Mapping[str, StoredObject]) -> bytes:
    data = _HEADER.pack(_MAGIC, _VERSION, slots, len(objects), sealer, generation)
    for name, each in objects.items():
        data += _ENTRY.pack(name.encode(), each.index, each.index_bytes, each.digest)
    return data + hashlib.sha256(data).digest()


def _full() -> NormalWorldError:
    return NormalWorldError(
        "The machine's disk is full.",
        hint="Remove models that are not used, then restart flexserve.",
        code="disk_full",
    )


def damaged(what: str) -> StoredDataError:
    """Return the error for a disk that is not as it was written."""
    return StoredDataError(
        f"The machine's disk is damaged: {what}.",
        hint="Restart flexserve: what the disk had is made again.",
    )
