"""A strict, bounded reader of GGUF headers (versions 2 and 3, little-endian).

llama.cpp's C++ parser never sees a header that this reader did not accept: sealing parses the
file that is added, and opening parses the header again before the engine gets it.

    magic "GGUF", u32 version, u64 tensor count, u64 metadata count
    metadata: key, u32 type, value        (a string is a u64 length and that many bytes)
    tensors:  name, u32 dimensions, u64 shape[], u32 type, u64 offset into the data
    zeros up to the alignment, then the data: tensors in order, each padded to the alignment

What is stricter than the format says: tensors follow each other without gaps or overlap (so does
llama.cpp), names and keys are unique and non-empty, everything has an upper bound, and the one
metadata key no model works without, general.architecture, is present. Bytes after the last
tensor are allowed; nothing ever reads them.
"""

from __future__ import annotations

import array
import dataclasses
import math
import struct
import sys
from collections.abc import Callable, Mapping

from flexserve.errors import CallerError
from flexserve.trusted.store.adapter import check_adapter
from flexserve.trusted.store.architecture import check_architecture
from flexserve.trusted.store.ggml_types import FILE_TYPES, TENSOR_TYPES
from flexserve.trusted.store.kinds import check_kind
from flexserve.trusted.store.values import bad
from flexserve.units import align_up

# Several times the largest that published models need; small enough that a hostile header costs
# at most a few hundred megabytes and seconds.
MAX_METADATA = 128 << 20  # bytes before the tensor data
MAX_STRING = 64 << 20  # bytes; some models carry a whole tokenizer.json as one string
MAX_KEY = 1024  # bytes
MAX_PAIRS = 1 << 16
MAX_ELEMENTS = 1 << 22  # array elements in all arrays together
MAX_TENSORS = 1 << 16
MAX_NAME = 63  # bytes; ggml keeps names in 64 with the terminator
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 16  # bytes
MAX_CONTEXT = (1 << 31) - 1  # tokens

_WINDOW = 1 << 20  # bytes fetched at a time
_STRING, _ARRAY, _BOOL = 8, 9, 7
_ALIGNMENT_KEY = "general.alignment"
_TOKENS_KEY = "tokenizer.ggml.tokens"
# value type → (struct and array code, bytes); bool is read as u8 and checked
_SCALARS = {
    0: ("B", 1), 1: ("b", 1), 2: ("H", 2), 3: ("h", 2), 4: ("I", 4), 5: ("i", 4),
    6: ("f", 4), 7: ("B", 1), 10: ("Q", 8), 11: ("q", 8), 12: ("d", 8),
}  # fmt: skip
_U32 = 4

Read = Callable[[int, int], bytes]


@dataclasses.dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: where its bytes lie in the file and what they mean."""

    name: str
    type: int  # ggml type id
    shape: tuple[int, ...]  # elements, fastest dimension first
    offset: int  # bytes from the start of the file
    size: int  # bytes

    @property
    def elements(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True, slots=True)
class GgufHeader:
    """Everything of a GGUF file but its tensor data.

    Metadata values are int, float, bool, str, array.array of numbers, or list of str or bool.
    """

    version: int
    metadata: dict[str, object]
    tensors: tuple[TensorInfo, ...]
    list_offset: int  # bytes; where the list of tensors starts, after the metadata
    data_offset: int  # bytes; where the tensor data starts
    alignment: int  # bytes

    @property
    def architecture(self) -> str:
        """The model family, as llama.cpp names it."""
        return str(self.metadata["general.architecture"])

    @property
    def name(self) -> str | None:
        """The model's name as its publisher wrote it."""
        return self._text("general.name")

    @property
    def chat_template(self) -> str | None:
        """The model's chat template: untrusted code, to be rendered in a sandbox only."""
        return self._text("tokenizer.chat_template")

    @property
    def context_length(self) -> int | None:
        """Tokens the model was trained to attend to."""
        return self._number(f"{self.architecture}.context_length")

    @property
    def parameter_count(self) -> int:
        """Number of weights in all tensors."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def quantization(self) -> str:
        """The label people know the file by ("Q4_0", "Q4_K_M", "F16"…).

        The publisher's own label where there is one, else the type that holds most bytes.
        """
        label = self._number("general.file_type")
        if label is not None and label in FILE_TYPES:
            return FILE_TYPES[label]
        sizes: dict[int, int] = {}
        for tensor in self.tensors:
            sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.size
        largest = max(sizes, key=sizes.__getitem__)
        return TENSOR_TYPES[largest][0]

    def without_lists(self) -> GgufHeader:
        """Return it without what is long: a vocabulary takes some 70 bytes a token."""
        lists = (list, array.array)
        short = {key: value for key, value in self.metadata.items() if not isinstance(value, lists)}
        return dataclasses.replace(self, metadata=short)

    def _text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def _number(self, key: str) -> int | None:
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def parse_gguf(read: Read, size: int, *, base: GgufHeader | None = None) -> GgufHeader:
    """Return the header of the GGUF file of `size` bytes whose bytes `read(offset, length)` gives.

    `base`: the header of the model that the file is an adapter of; None: it is a model. Reads forward only,
    in pieces of at most MAX_STRING, and never outside the file. Raises CallerError for everything that is
    not a well-formed model of a kind llama.cpp knows, or adapter of `base`, and nothing else apart from
    what `read` raises.
    """
    header = parse_shard(read, size)
    _bounded(len(header.tensors), 1, MAX_TENSORS, "tensor count")
    _check_model(header.metadata)
    check_kind(header.metadata, adapts=base is not None)
    if base is None:
        check_architecture(header.architecture, header.metadata, header.tensors)
    else:
        check_adapter(header.metadata, header.tensors, base.architecture, base.tensors)
    return header


def parse_shard(read: Read, size: int) -> GgufHeader:
    """Return the header of a GGUF file that may be one part of a split model, as parse_gguf.

    What the metadata says is not checked, and may be missing.
    """
    cursor = _Cursor(read, size)
    version = _version(cursor)
    tensor_count = _bounded(cursor.number("Q"), 0, MAX_TENSORS, "tensor count")
    pair_count = _bounded(cursor.number("Q"), 1, MAX_PAIRS, "metadata count")
    metadata = _metadata(cursor, pair_count)
    alignment = _alignment(metadata)
    list_offset = cursor.position
    drafts = [_tensor(cursor) for _ in range(tensor_count)]
    data_offset = align_up(cursor.position, alignment)
    if data_offset > MAX_METADATA:
        raise bad("its header is too large")
    tensors = _place(drafts, data_offset, alignment, size)
    return GgufHeader(version, metadata, tensors, list_offset, data_offset, alignment)


def _show(text: str) -> str:
    return repr(text if len(text) <= 64 else text[:63] + "…")


def _bounded(value: int, low: int, high: int, what: str) -> int:
    if not low <= value <= high:
        raise bad(f"its {what} is {value}, which is not in {low}…{high}")
    return value


class _Cursor:
    """Reads a file front to back through a window."""

    def __init__(self, read: Read, size: int) -> None:
        self._read = read
        self._size = size
        self._limit = min(size, MAX_METADATA)
        self._window = b""
        self._start = 0  # file offset of the window
        self._next = 0  # position in the window
        self.elements = 0  # array elements so far

    @property
    def position(self) -> int:
        return self._start + self._next

    def take(self, length: int) -> bytes:
        """Return the next `length` bytes."""
        if length > len(self._window) - self._next:
            self._refill(length)
        piece = self._window[self._next : self._next + length]
        self._next += length
        return piece

    def _refill(self, length: int) -> None:
        if length > self._limit - self.position:
            if self._limit == self._size:
                raise bad("it ends in the middle of its header")
            raise bad(f"its header is larger than {MAX_METADATA} bytes")
        self._start, self._next = self.position, 0
        wanted = min(max(length, _WINDOW), self._limit - self._start)
        self._window = self._read(self._start, wanted)
        if len(self._window) != wanted:
            raise bad("it became shorter while it was read")

    def number(self, code: str) -> int:
        """Return the next little-endian integer of struct code `code`."""
        value: int = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]
        return value

    def string(self, limit: int, what: str) -> str:
        """Return the next length-prefixed string of at most `limit` bytes."""
        length = self.number("Q")
        if length > limit:
            raise bad(f"the length of a {what} is {length} bytes, more than {limit}")
        return _decode(self.take(length), what)

    def strings(self, count: int) -> list[str]:
        """Return the next `count` strings: a vocabulary, so this loop is the reader's hot spot."""
        texts = []
        for _ in range(count):
            window, start = self._window, self._next + 8
            end = start + int.from_bytes(window[self._next : start], "little")
            if end <= len(window):
                self._next = end
                texts.append(_decode(window[start:end], "text"))
            else:  # not wholly in the window (nor, perhaps, its length)
                texts.append(self.string(MAX_STRING, "text"))
        return texts


def _decode(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise bad(f"a {what} is not UTF-8 text") from None


def _version(cursor: _Cursor) -> int:
    if cursor.take(4) != b"GGUF":
        raise bad("it does not start with GGUF")
    version = cursor.number("I")
    if version in (2 << 24, 3 << 24):
        raise bad("it is for big-endian machines")
    if version not in (2, 3):
        raise bad(f"its format version is {version}, and 2 and 3 are known")
    return version


def _metadata(cursor: _Cursor, count: int) -> dict[str, object]:
    metadata: dict[str, object] = {}
    for _ in range(count):
        key = cursor.string(MAX_KEY, "metadata key")
        if not key or key in metadata:
            raise bad(f"the metadata key {_show(key)} is empty or appears twice")
        kind = cursor.number("I")
        if key == _ALIGNMENT_KEY and kind != _U32:
            raise bad(f"its {key} is not a 32-bit number")
        metadata[key] = _value(cursor, kind)
    return metadata


def _value(cursor: _Cursor, kind: int) -> object:
    if kind == _STRING:
        return cursor.string(MAX_STRING, "text")
    if kind == _ARRAY:
        return _array(cursor)
    if kind not in _SCALARS:
        raise bad(f"a metadata value is of unknown type {kind}")
    code, width = _SCALARS[kind]
    value = struct.unpack("<" + code, cursor.take(width))[0]
    return _booleans(bytes([value]))[0] if kind == _BOOL else value


def _array(cursor: _Cursor) -> object:
    kind = cursor.number("I")
    count = cursor.number("Q")
    cursor.elements += count
    if cursor.elements > MAX_ELEMENTS:
        raise bad(f"its metadata arrays hold more than {MAX_ELEMENTS} elements")
    if kind == _STRING:
        return cursor.strings(count)
    if kind not in _SCALARS:
        raise bad(f"a metadata array holds elements of type {kind}, which is unknown or nested")
    code, width = _SCALARS[kind]
    raw = cursor.take(count * width)
    if kind == _BOOL:
        return _booleans(raw)
    numbers = array.array(code, raw)  # its itemsizes equal _SCALARS' on every platform CPython runs on
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _booleans(raw: bytes) -> list[bool]:
    if raw.strip(b"\0\1"):
        raise bad("a truth value in its metadata is neither 0 nor 1")
    return [byte == 1 for byte in raw]


def _alignment(metadata: Mapping[str, object]) -> int:
    alignment = metadata.get(_ALIGNMENT_KEY, 32)
    assert isinstance(alignment, int)  # _metadata saw to it
    _bounded(alignment, 8, MAX_ALIGNMENT, _ALIGNMENT_KEY)
    if alignment & (alignment - 1):
        raise bad(f"its {_ALIGNMENT_KEY} is not a power of two")
    return alignment


def _check_model(metadata: Mapping[str, object]) -> None:
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not 0 < len(architecture) <= 64 or not architecture.isprintable():
        raise bad("it does not name its architecture")
    context = metadata.get(f"{architecture}.context_length")
    if isinstance(context, int) and not 0 <= context <= MAX_CONTEXT:
        raise bad(f"its context length is {context}, which is not in 0…{MAX_CONTEXT}")
    _check_vocabulary(metadata.get(_TOKENS_KEY))
    splits = metadata.get("split.count", 0)
    if isinstance(splits, int) and splits > 1:
        raise CallerError(
            f"This is one of the {splits} parts of a split model, and its name does not say which.",
            hint="Give the parts the names they had (NAME-00001-of-00003.gguf), and add the first.",
            code="bad_gguf",
        )


def _check_vocabulary(tokens: object) -> None:
    """Raise CallerError for a vocabulary that names a token twice: llama.cpp would abort on it."""
    if not isinstance(tokens, list):
        return
    # As llama.cpp sees them: up to the first NUL, and with a name for the empty ones.
    texts = {str(token).partition("\0")[0] or f"[EMPTY_{index}]" for index, token in enumerate(tokens)}
    if len(texts) != len(tokens):
        raise bad("its vocabulary has the same token twice")


def _tensor(cursor: _Cursor) -> TensorInfo:
    """Return the next tensor; its offset is still relative to the data."""
    name = cursor.string(MAX_NAME, "tensor name")
    if not name:
        raise bad("a tensor has no name")
    dimensions = _bounded(cursor.number("I"), 1, MAX_DIMENSIONS, f"tensor {_show(name)}'s dimension count")
    shape = struct.unpack(f"<{dimensions}Q", cursor.take(8 * dimensions))
    kind = cursor.number("I")
    offset = cursor.number("Q")
    return TensorInfo(name, kind, shape, offset, _size(name, kind, shape))


def _size(name: str, kind: int, shape: tuple[int, ...]) -> int:
    if kind not in TENSOR_TYPES:
        raise bad(f"tensor {_show(name)} is of unknown type {kind}")
    if 0 in shape or math.prod(shape) >= 1 << 63:
        raise bad(f"tensor {_show(name)} has an impossible shape")
    _, block, width = TENSOR_TYPES[kind]
    if shape[0] % block:
        raise bad(f"a row of tensor {_show(name)} is not a multiple of its block of {block}")
    return math.prod(shape) // block * width


def _place(drafts: list[TensorInfo], data_offset: int, alignment: int, size: int) -> tuple[TensorInfo, ...]:
    """Return `drafts` with absolute offsets, after checking that they tile the data in order."""
    names: set[str] = set()
    expected = 0
    tensors = []
    for draft in drafts:
        if draft.name in names:
            raise bad(f"tensor {_show(draft.name)} appears twice")
        names.add(draft.name)
        if draft.offset != expected:
            raise bad(f"tensor {_show(draft.name)} is not where the one before it ends")
        end = data_offset + draft.offset + draft.size
        if end > size:
            raise bad(f"tensor {_show(draft.name)} lies {end - size} bytes beyond the end of the file")
        tensors.append(dataclasses.replace(draft, offset=data_offset + draft.offset))
        expected = align_up(draft.offset + draft.size, alignment)
    return tuple(tensors)
