"""The parts of a split model, read as the one GGUF that they were.

    NAME-00001-of-00003.gguf, …     each a GGUF of its own: a header, and the data of some tensors

The joined file has the metadata of the first part, the tensors of all parts, and their data in the order
of the parts. Nothing is written: the header is made in memory, the data is read where it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import struct
from collections.abc import Iterator, Sequence

from flexserve.errors import CallerError
from flexserve.trusted.store.gguf import GgufHeader, parse_shard
from flexserve.trusted.store.source import Source, reader
from flexserve.trusted.store.values import bad
from flexserve.units import align_up

_PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)", re.IGNORECASE)
_MAX_PARTS = 1000
_PRELUDE = struct.Struct("<4sIQQ")
_COUNT_KEY, _NUMBER_KEY = "split.count", "split.no"
_WIDTHS = {2: 2, 3: 2, 4: 4, 5: 4}  # bytes of a value, by its type: 16 and 32 bits


def part_names(name: str) -> list[str]:
    """Return the names of all parts of the split model that the file `name` is one of; [name]: it is none.

    Raises CallerError for a name that says an impossible count.
    """
    found = _PART.search(name)
    if found is None:
        return [name]
    count = int(found[2])
    if not 1 <= count <= _MAX_PARTS:
        raise CallerError(f"{name} is one of {count} parts, which is not in 1…{_MAX_PARTS}.")
    return [
        f"{name[: found.start()]}-{part:05}-of-{found[2]}{name[found.end() :]}"
        for part in range(1, count + 1)
    ]


def whole_name(name: str) -> str:
    """Return `name` without what says which part of a split model it is."""
    return _PART.sub("", name)


@dataclasses.dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes start…start + size of the joined file: those of a part from `offset` on, or zeros."""

    start: int
    size: int
    part: int | None = None
    offset: int = 0


class JoinedSource:
    """The GGUF whose parts `parts` are, in their order."""

    def __init__(self, parts: Sequence[Source]) -> None:
        """Read the headers of all parts. Raises CallerError when they do not belong together."""
        self._parts = parts
        headers = [parse_shard(reader(part), part.size) for part in parts]
        for number, header in enumerate(headers):
            _check_part(header, number, len(parts))
        alignment = headers[0].alignment
        self._pieces: list[_Piece] = []
        starts, end = [], 0  # of the data of each part, in the data of the whole
        for number, (header, part) in enumerate(zip(headers, parts, strict=True)):
            starts.append(end)
            size = part.size - header.data_offset
            self._pieces.append(_Piece(end, size, number, header.data_offset))
            end += size
            if number < len(parts) - 1:
                self._pieces.append(_Piece(end, -end % alignment))
                end = align_up(end, alignment)
        raw = [_bytes(part, header.data_offset) for part, header in zip(parts, headers, strict=True)]
        self._head = _join(raw[0], headers, starts)
        self._digests = [hashlib.sha256(text) for text in raw]
        self._pieces = [
            dataclasses.replace(piece, start=piece.start + len(self._head)) for piece in self._pieces
        ]
        self._size = len(self._head) + end
        self._seen = 0

    @property
    def size(self) -> int:
        """Bytes of the joined GGUF."""
        return self._size

    @property
    def identity(self) -> str:
        """A digest of the identities of the parts."""
        return hashlib.sha256("".join(part.identity for part in self._parts).encode()).hexdigest()

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `offset` on; errors as those of the parts."""
        head = self._head[offset : offset + len(target)]
        target[: len(head)] = head
        for piece, at, part in self._within(offset, target):
            if piece.part is None:
                part[:] = bytes(len(part))
            else:
                self._parts[piece.part].read_into(piece.offset + at - piece.start, part)

    def saw(self, text: memoryview) -> None:
        """Count the next bytes that were sealed into the digests of their parts."""
        for piece, _, part in self._within(self._seen, text):
            if piece.part is not None:
                self._digests[piece.part].update(part)
        self._seen += len(text)

    def check(self, _digest: str, /) -> None:
        """Raise CallerError when a part is not what it should have been; of the whole, nothing is known."""
        for part, its in zip(self._parts, self._digests, strict=True):
            part.check(its.hexdigest())

    def _within(self, offset: int, text: memoryview) -> Iterator[tuple[_Piece, int, memoryview]]:
        """Yield the pieces that `text`, the bytes from `offset` on, lies in: piece, start and its text."""
        for piece in self._pieces:
            start, end = max(piece.start, offset), min(piece.start + piece.size, offset + len(text))
            if start < end:
                yield piece, start, text[start - offset : end - offset]


def _bytes(source: Source, count: int) -> bytes:
    return reader(source)(0, count)


def _check_part(header: GgufHeader, number: int, count: int) -> None:
    found = header.metadata.get(_NUMBER_KEY), header.metadata.get(_COUNT_KEY)
    if found != (number, count):
        raise CallerError(
            f"Part {number + 1} of {count} says that it is number {found[0]} of {found[1]}, counted from 0.",
            hint="Get all parts of one model, under the names they were published by.",
            code="bad_gguf",
        )


def _join(first: bytes, headers: Sequence[GgufHeader], starts: Sequence[int]) -> bytes:
    """Return the header of the joined file; `first` are the bytes of the first part's."""
    _, version, _, pairs = _PRELUDE.unpack_from(first)
    metadata = _not_split(first[_PRELUDE.size : headers[0].list_offset])
    tensors = b"".join(
        _entry(tensor.name, tensor.shape, tensor.type, start + tensor.offset - header.data_offset)
        for header, start in zip(headers, starts, strict=True)
        for tensor in header.tensors
    )
    count = sum(len(header.tensors) for header in headers)
    head = _PRELUDE.pack(b"GGUF", version, count, pairs) + metadata + tensors
    return head.ljust(align_up(len(head), headers[0].alignment), b"\0")


def _not_split(metadata: bytes) -> bytes:
    """Return `metadata` with a count of parts of 0, by which llama.cpp looks for no others."""
    key = struct.pack("<Q", len(_COUNT_KEY)) + _COUNT_KEY.encode()
    at = metadata.find(key)
    kind = metadata[at + len(key) : at + len(key) + 4]
    width = _WIDTHS.get(int.from_bytes(kind, "little"))
    if at < 0 or width is None:  # it was read as a number, but not of such a type
        raise bad(f"its {_COUNT_KEY} is not a number of 16 or 32 bits")
    value = at + len(key) + 4
    return metadata[:value] + bytes(width) + metadata[value + width :]


def _entry(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    text = name.encode()
    return (
        struct.pack("<Q", len(text))
        + text
        + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    )
