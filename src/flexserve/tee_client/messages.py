"""The messages of trusted-app/messages.h: requests to the trusted application, and its answers."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flexserve.errors import PeerError
from flexserve.protocol.model_options import KvType

VERSION = 6
MOST_PAYLOAD = 16 << 20  # bytes
KEPT_PART = 1 << 16  # bytes of plaintext
NUMBERS = 5
HEADER = struct.Struct(f"<IIQ{NUMBERS}Q")  # of a request and of an answer
_OF_SEALED = 1 << 63  # of the second number of an owner
KV_TYPES: Mapping[KvType, int] = {"f16": 1, "q4_0": 2, "q8_0": 8}  # ggml's
_OPENING = struct.Struct("<16s32s60sI")
_PROGRESS = struct.Struct("<IIII")
_WORD = struct.Struct("<III")


class Ask(enum.IntEnum):
    """What is asked. The header says what each takes and gives."""

    HELLO = 1
    GRANT = 2
    GIVE_BACK = 3
    POOL = 4
    SECRET = 5
    OPEN = 6
    CLOSE = 7
    WRITE = 8
    SEAL = 9
    IMAGE = 10
    LOAD = 11
    EVICT = 12
    RESIDENT = 13
    TOKENISE = 14
    DETOKENISE = 15
    BEGIN = 16
    STEP = 17
    SAID = 18
    END = 19
    KEEP = 20
    KEPT = 21
    RESUME = 22
    RESUMED = 23
    LOAD_PAGES = 24
    HEAP = 25
    LEAVE = 26
    ORDER = 27
    SAMPLING = 30
    ADMIT = 31
    EMBED = 32
    SHIFT = 33
    ATTEST = 40
    KNOW = 41
    UNSEAL = 42
    FRAME = 43
    FINISH = 44
    BEGIN_SEALED = 45
    DESCRIBE = 60
    WORDS = 61
    MARKS = 62


# What is answered between two slices of a step. All else is refused as busy then.
ABOUT_MEMORY = frozenset(
    {
        *(Ask.GRANT, Ask.GIVE_BACK, Ask.POOL, Ask.EVICT, Ask.RESIDENT),
        *(Ask.LOAD, Ask.LOAD_PAGES, Ask.LEAVE, Ask.ORDER),
    }
)


class Status(enum.IntEnum):
    """How it went."""

    DONE = 0
    REFUSED = 1
    MISSING = 2
    BAD = 3
    UNSUPPORTED = 4
    FAILED = 5
    DAMAGED = 6
    BUSY = 7


class Finish(enum.IntEnum):
    """Why a generation ended."""

    NO = 0
    STOP = 1
    LENGTH = 2
    STUCK = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """An answer."""

    status: Status
    values: tuple[int, ...]
    payload: bytes


class Word(NamedTuple):
    """A token of a vocabulary. `attributes` are llama.cpp's; `ends`: it ends an answer."""

    attributes: int
    ends: bool
    text: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """Where a generation is after a step."""

    sequence: int
    pending: int  # tokens to compute before the next one can be chosen
    said: int  # tokens said so far
    finished: Finish


def request(kind: int, tag: int, arguments: Sequence[int], payload: bytes) -> bytes:
    """Return a request as it is sent: a header, then its payload."""
    numbers = [*arguments, *[0] * (NUMBERS - len(arguments))]
    return HEADER.pack(kind, len(payload), tag, *numbers) + payload


def opening(model: bytes, salt: bytes, wrapped_key: bytes, kv: KvType) -> bytes:
    """Return what is before a model's metadata in the payload of `Ask.OPEN`; `kv`: as what KV is kept."""
    return _OPENING.pack(model, salt, wrapped_key, KV_TYPES[kv])


def progress(reply: Reply) -> list[Progress]:
    """Return what a step answers. Raises PeerError for what is none."""
    try:
        return [
            Progress(sequence, pending, said, Finish(finished))
            for sequence, pending, said, finished in _PROGRESS.iter_unpack(reply.payload)
        ]
    except (struct.error, ValueError):
        raise broken("what it says of a step is none") from None


def words(payload: bytes) -> list[Word]:
    """Return a part of a vocabulary. Raises PeerError for what is none."""
    found, place = [], 0
    while place < len(payload):
        try:
            attributes, ends, size = _WORD.unpack_from(payload, place)
        except struct.error:
            raise broken("its vocabulary is cut off") from None
        place += _WORD.size
        text = payload[place : place + size]
        if len(text) < size:
            raise broken("its vocabulary is cut off")
        found.append(Word(attributes, ends != 0, text))
        place += size
    return found


def packed(numbers: Sequence[int]) -> bytes:
    """Return numbers as a payload, 32 bits each."""
    return struct.pack(f"<{len(numbers)}I", *numbers)


def unpacked(payload: bytes) -> list[int]:
    """Return the numbers of a payload. Raises PeerError when it is not made of whole ones."""
    if len(payload) % 4:
        raise broken("numbers are cut off")
    return list(struct.unpack(f"<{len(payload) // 4}I", payload))


def owner_numbers(owner: str) -> tuple[int, int]:
    """Return what stands for an owner of KV in a request; the last bit marks those of sealed requests."""
    first, second = struct.unpack("<2Q", hashlib.sha256(owner.encode()).digest()[:16])
    return first, second & ~_OF_SEALED


def pseudonym(numbers: tuple[int, int]) -> str:
    """Return what we call an owner of KV by that stands for it in requests, of sealed ones, too."""
    return struct.pack("<2Q", *numbers).hex()


def numbers_of(name: str) -> tuple[int, int]:
    """Return the numbers of which `name` is the pseudonym."""
    first, second = struct.unpack("<2Q", bytes.fromhex(name))
    return first, second


def broken(what: str) -> PeerError:
    """Return the error for an answer that cannot be."""
    return PeerError(
        f"The trusted application broke the protocol: {what}.",
        hint="Restart flexserve.",
        code="trusted_app_broken",
    )
