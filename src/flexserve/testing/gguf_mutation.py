"""GGUF headers taken apart, changed at random, and put together again: food for fuzzing.

A changed header is mostly well formed, so that it reaches what stands behind the reader: one to
three of its values, keys, tensors or bytes are not what they were.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import random
import struct
from collections.abc import Callable, Sequence

from flexserve.trusted.store.ggml_types import TENSOR_TYPES
from flexserve.trusted.store.gguf import parse_gguf
from flexserve.units import align_up

_ALIGNMENT = 32  # bytes
_STRING, _ARRAY = 8, 9
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_RANGES = {"B": (0, 255), "b": (-128, 127), "H": (0, 65535), "h": (-32768, 32767), "I": (0, 2**32 - 1),
           "i": (-(2**31), 2**31 - 1), "Q": (0, 2**64 - 1), "q": (-(2**63), 2**63 - 1)}  # fmt: skip
_INTEGERS = (0, 1, 2, 3, 4, 5, 7, 8, 16, 31, 33, 63, 64, 65, 100, 127, 128, 255, 256, 257, 511, 512, 513,
             1023, 1024, 1025, 65535, 65536, 1 << 20, 2**31 - 1, 2**31, 2**32 - 1, -1, -2)  # fmt: skip
_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e-30, 1e30, 3e38, -3e38, math.inf, -math.inf, math.nan)
_TEXTS = ("", "llama", "gpt2", "bert", "t5", "rwkv", "plamo2", "none", "no_vocab", "default", "qwen2",
          "linear", "yarn", "longrope", "ntk", "\0", "a\0b", "x" * 70, "[PAD]", "silu", "gelu")  # fmt: skip

Value = tuple[int, object]  # value type, value; an array's value is (element type, list)


@dataclasses.dataclass(slots=True)
class Tensor:
    """A tensor's place in a header: its name, ggml type and shape (elements, fastest dimension first)."""

    name: str
    kind: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes, rounded down where the shape is none that the type has; 0 for types nobody knows."""
        _, block, width = TENSOR_TYPES.get(self.kind, ("", 1, 0))
        return math.prod(self.shape) // block * width


@dataclasses.dataclass(slots=True)
class Draft:
    """A header as a list of what it says. `encode` may give bytes that no reader accepts."""

    pairs: list[tuple[str, Value]]
    tensors: list[Tensor]

    def copy(self) -> Draft:
        """Return another draft that shares no list with this one."""
        return Draft(list(self.pairs), [Tensor(each.name, each.kind, each.shape) for each in self.tensors])

    def encode(self) -> tuple[bytes, int]:
        """Return the header's bytes, up to the tensor data, and the size of the whole file."""
        parts = [struct.pack("<4sIQQ", b"GGUF", 3, len(self.tensors), len(self.pairs))]
        for key, (kind, value) in self.pairs:
            parts += [_text(key), struct.pack("<I", kind), _value(kind, value)]
        offset = 0
        for tensor in self.tensors:
            shape = [dimension % (1 << 64) for dimension in tensor.shape]
            fields = (len(shape), *shape, tensor.kind % (1 << 32), offset % (1 << 64))
            parts += [_text(tensor.name), struct.pack(f"<I{len(shape)}QIQ", *fields)]
            offset = align_up(offset + tensor.size, _ALIGNMENT)
        head = b"".join(parts)
        head += bytes(-len(head) % _ALIGNMENT)
        return head, len(head) + offset


def take_apart(data: bytes) -> Draft:
    """Return the header of the sound GGUF file `data` (or of its beginning) as a draft."""
    position = 8
    tensor_count, pair_count = struct.unpack_from("<QQ", data, position)
    position += 16
    pairs: list[tuple[str, Value]] = []
    for _ in range(pair_count):
        key, position = _read_text(data, position)
        kind = struct.unpack_from("<I", data, position)[0]
        value, position = _read_value(data, position + 4, kind)
        pairs.append((key, (kind, value)))
    header = parse_gguf(lambda offset, length: data[offset : offset + length].ljust(length, b"\0"), 1 << 50)
    tensors = [Tensor(tensor.name, tensor.type, tensor.shape) for tensor in header.tensors]
    assert len(tensors) == tensor_count
    return Draft(pairs, tensors)


class Mutator:
    """Changes headers at random. `drafts` are sound ones; keys and names wander between them."""

    def __init__(self, drafts: Sequence[Draft], rng: random.Random) -> None:
        self._drafts, self._rng = drafts, rng
        self._suffixes = sorted({key.partition(".")[2] for draft in drafts for key, _ in draft.pairs})
        self._values = {key.partition(".")[2]: value for draft in drafts for key, value in draft.pairs}
        self._architectures = sorted({_architecture(draft) for draft in drafts})
        self._names = sorted({tensor.name for draft in drafts for tensor in draft.tensors})
        self._changes: list[tuple[Callable[[Draft], None], int]] = [
            (self._change_number, 12), (self._change_text, 2), (self._change_type, 2), (self._drop_pair, 2),
            (self._add_pair, 4), (self._change_array, 6), (self._rename_architecture, 1),
            (self._reshape, 5), (self._retype, 3), (self._drop_tensor, 2), (self._rename_tensor, 2),
            (self._repeat, 1),
        ]  # fmt: skip

    def next(self) -> tuple[bytes, int]:
        """Return the header of a file that was changed, and the size of the file."""
        rng = self._rng
        draft = rng.choice(self._drafts).copy()
        changes, weights = zip(*self._changes, strict=True)
        for change in rng.choices(changes, weights, k=rng.choice((1, 1, 1, 2, 3))):
            change(draft)
        head, size = draft.encode()
        if rng.random() < 0.1:
            head = self._flip(head)
        return head, max(0, size + rng.choice((0,) * 12 + (-1, 1, -4096)))

    # ---- changes of a draft in place ----------------------------------------------------------------

    def _any_pair(self, draft: Draft, kinds: Sequence[int]) -> int | None:
        places = [i for i, (_, (kind, _)) in enumerate(draft.pairs) if kind in kinds]
        return self._rng.choice(places) if places else None

    def _change_number(self, draft: Draft) -> None:
        place = self._any_pair(draft, list(_CODES))
        if place is not None:
            key, (kind, value) = draft.pairs[place]
            draft.pairs[place] = key, (kind, self._number(kind, value))

    def _number(self, kind: int, value: object) -> object:
        rng, code = self._rng, _CODES[kind]
        if code in "fd":
            new = float(rng.choice((*_FLOATS, float(value) * 2 if isinstance(value, float) else 0.0)))
            return new if code == "d" or not math.isfinite(new) or abs(new) < 3.4e38 else math.inf
        old = int(value) if isinstance(value, int) else 0
        number = rng.choice(
            (*_INTEGERS, old + 1, old - 1, old * 2, old // 2, rng.getrandbits(rng.choice((4, 8, 32))))
        )
        low, high = _RANGES[code]
        return number if low <= number <= high else number % (high + 1)

    def _change_text(self, draft: Draft) -> None:
        place = self._any_pair(draft, (_STRING,))
        if place is not None:
            draft.pairs[place] = draft.pairs[place][0], (_STRING, self._rng.choice(_TEXTS))

    def _change_type(self, draft: Draft) -> None:
        place = self._rng.randrange(len(draft.pairs)) if draft.pairs else None
        if place is not None:
            key, (_, value) = draft.pairs[place]
            kind = self._rng.choice((*_CODES, _STRING, _ARRAY))
            if kind == _STRING:
                new: Value = kind, str(value)[:80]
            elif kind == _ARRAY:
                element = self._rng.choice((4, 5, 6, 7))
                new = (
                    kind,
                    (element, [self._number(element, value) for _ in range(self._rng.choice((0, 1, 2, 4)))]),
                )
            else:
                new = kind, self._number(kind, value)
            draft.pairs[place] = key, new

    def _drop_pair(self, draft: Draft) -> None:
        if draft.pairs:
            del draft.pairs[self._rng.randrange(len(draft.pairs))]

    def _add_pair(self, draft: Draft) -> None:
        """Give the header a value of another model's, or of its own under another key."""
        suffix = self._rng.choice(self._suffixes)
        space = _architecture(draft) if suffix.count(".") or "_" in suffix else "general"
        draft.pairs.append((f"{space}.{suffix}", self._values[suffix]))
        if self._values[suffix][0] in _CODES and self._rng.random() < 0.5:
            key, (kind, value) = draft.pairs[-1]
            draft.pairs[-1] = key, (kind, self._number(kind, value))

    def _change_array(self, draft: Draft) -> None:
        place = self._any_pair(draft, (_ARRAY,))
        if place is None:
            return
        rng = self._rng
        key, (_, value) = draft.pairs[place]
        assert isinstance(value, tuple)
        element, old = value
        items = list(old)
        for _ in range(rng.choice((1, 1, 3))):
            at = rng.randrange(len(items) + 1)
            match rng.randrange(5):
                case 0:
                    del items[at:]
                case 1:
                    items[at:at] = items[: rng.choice((1, 2, 64))]
                case 2 if items:
                    del items[at - 1]
                case _ if items:
                    items[at - 1] = (
                        rng.choice(_TEXTS) if element == _STRING else self._number(element, items[at - 1])
                    )
        draft.pairs[place] = key, (_ARRAY, (element, items))

    def _rename_architecture(self, draft: Draft) -> None:
        """Call the model, and what is said of it, by the name of another family."""
        old, new = _architecture(draft), self._rng.choice(self._architectures)
        draft.pairs = [
            (key.replace(f"{old}.", f"{new}.", 1) if key.startswith(f"{old}.") else key, value)
            for key, value in draft.pairs
            if key != "general.architecture"
        ]
        draft.pairs.insert(0, ("general.architecture", (_STRING, new)))

    def _reshape(self, draft: Draft) -> None:
        if not draft.tensors:
            return
        rng = self._rng
        tensor = rng.choice(draft.tensors)
        shape = list(tensor.shape)
        at = rng.randrange(len(shape))
        match rng.randrange(5):
            case 0:
                shape.reverse()
            case 1:
                shape.append(rng.choice((1, 1, 2, 3)))
            case 2 if len(shape) > 1:
                del shape[at]
            case 3:
                shape[at] = rng.choice((shape[at] * 2, shape[at] // 2, shape[at] + 32, shape[at] + 1))
            case _:
                shape[at] = rng.choice((1, 2, 3, 32, 64, 96, 128, 256, 0, 1 << 31, 1 << 62))
        tensor.shape = tuple(shape)

    def _retype(self, draft: Draft) -> None:
        if draft.tensors:
            tensor = self._rng.choice(draft.tensors)
            tensor.kind = self._rng.choice((*TENSOR_TYPES, 0, 1, 8, 30, 99))

    def _drop_tensor(self, draft: Draft) -> None:
        if len(draft.tensors) > 1:
            del draft.tensors[self._rng.randrange(len(draft.tensors))]

    def _rename_tensor(self, draft: Draft) -> None:
        if draft.tensors:
            self._rng.choice(draft.tensors).name = self._rng.choice(self._names)

    def _repeat(self, draft: Draft) -> None:
        if draft.pairs and self._rng.random() < 0.5:
            draft.pairs.append(self._rng.choice(draft.pairs))
        elif draft.tensors:
            draft.tensors.append(dataclasses.replace(self._rng.choice(draft.tensors)))

    def _flip(self, head: bytes) -> bytes:
        data = bytearray(head)
        for _ in range(self._rng.choice((1, 1, 2, 8))):
            data[self._rng.randrange(len(data))] = self._rng.choice(
                (0, 1, 0x7F, 0x80, 0xFF, self._rng.getrandbits(8))
            )
        return bytes(data)


def _architecture(draft: Draft) -> str:
    return next((str(v) for key, (_, v) in draft.pairs if key == "general.architecture"), "llama")


@functools.lru_cache(1 << 16)  # nearly all that is written is a text of a few sound headers
def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _value(kind: int, value: object) -> bytes:
    if kind == _STRING:
        return _text(str(value))
    if kind == _ARRAY:
        assert isinstance(value, tuple)
        element, items = value
        head = struct.pack("<IQ", element, len(items))
        if element == _STRING:
            return head + b"".join(map(_text, items))
        return head + struct.pack(f"<{len(items)}{_CODES[element]}", *items)
    return struct.pack("<" + _CODES[kind], value)


def _read_text(data: bytes, position: int) -> tuple[str, int]:
    end = position + 8 + struct.unpack_from("<Q", data, position)[0]
    return data[position + 8 : end].decode("utf-8", "surrogateescape"), end


def _read_value(data: bytes, position: int, kind: int) -> tuple[object, int]:
    if kind == _STRING:
        return _read_text(data, position)
    if kind == _ARRAY:
        element, count = struct.unpack_from("<IQ", data, position)
        position += 12
        items: list[object] = []
        if element == _STRING:
            for _ in range(count):
                text, position = _read_text(data, position)
                items.append(text)
            return (element, items), position
        code = f"<{count}{_CODES[element]}"
        items = list(struct.unpack_from(code, data, position))
        return (element, items), position + struct.calcsize(code)
    code = "<" + _CODES[kind]
    return struct.unpack_from(code, data, position)[0], position + struct.calcsize(code)
