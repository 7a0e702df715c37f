"""A sealed answer: messages in frames of one size, which only the sender of the request can open.

    server nonce 32 | frame | frame …                 a frame: mark 1 | AES-256-GCM ciphertext

Key (32 bytes) and base nonce (12) are HKDF-SHA-256 over the request's secret; the salt is the SHA-256 of the
request's whole body and the server nonce. The nonce of a frame is the base nonce XOR the frame's number, both
big-endian. The associated data is the mark: 1 for the last frame, 0 for the others. A frame's plaintext is a
2-byte little-endian length, so many bytes of the messages' stream (protocol.framing), and zeros.

Frames have two sizes. `frame_size` says which one an answer has, by what was asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Meta

from flexserve.protocol.answers import Converted, Delta, Embedded, Failed, Finished, Started
from flexserve.protocol.messages import Status
from flexserve.protocol.requests import Generate
from flexserve.protocol.sealed_request import Asked

INFO = b"flexserve sealed answer 1\0"
SERVER_NONCE = 32  # bytes
SMALL, LARGE = 1 << 10, 1 << 14  # bytes of a frame
LAST_SIZE = 1 << 12  # bytes that the end takes at least
TOKENS_OF_A_FRAME = 8  # at most, of a text that leaves as it is made
_HEADROOM = 1 + 16 + 2  # mark, tag, length
MORE, LAST = b"\0", b"\1"


class Receipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The secure world's signed account of a request, before its end: a COSE_Sign1."""

    request: Annotated[int, Meta(ge=0, le=1 << 53)]
    signed: Annotated[bytes, Meta(max_length=1 << 14)]


Answered = Started | Delta | Embedded | Converted | Receipt | Finished | Failed | Status


def frame_size(asked: Asked) -> int:
    """Return the bytes of each frame of the answer: what was asked decides, not what is answered."""
    small = isinstance(asked, Generate) and asked.sampling.logprobs is None and not asked.sampling.echo
    return SMALL if small else LARGE


class Frames:
    """What both ends derive of a request's secret; counts frames."""

    def __init__(self, secret: bytes, body_hash: bytes, server_nonce: bytes, size: int) -> None:
        derived = HKDF(SHA256(), 44, body_hash + server_nonce, INFO).derive(secret)
        self._aead, self._base = AESGCM(derived[:32]), int.from_bytes(derived[32:])
        self._number, self._size = 0, size

    def _nonce(self) -> bytes:
        nonce = (self._base ^ self._number).to_bytes(12)
        self._number += 1
        return nonce


class FrameSealer(Frames):
    """The secure world's end: bytes of a stream in, frames out. Holds what did not fit yet."""

    def __init__(self, secret: bytes, body_hash: bytes, server_nonce: bytes, size: int) -> None:
        super().__init__(secret, body_hash, server_nonce, size)
        self._waiting = bytearray()

    def add(self, data: bytes) -> None:
        """Take bytes that are to go with the next frames."""
        self._waiting += data

    def frame(self) -> bytes:
        """Return one frame, with as much of what waits as it holds."""
        return self._frame(MORE)

    def full(self) -> Iterator[bytes]:
        """Yield the frames that what waits fills."""
        while len(self._waiting) >= self._size - _HEADROOM:
            yield self._frame(MORE)

    def end(self) -> bytes:
        """Return the last frames, with all that waits: LAST_SIZE bytes, or the next power of two."""
        room = self._size - _HEADROOM
        count = max(LAST_SIZE // self._size, 1, -(-len(self._waiting) // room))
        count = 1 << (count - 1).bit_length()
        return b"".join(self._frame(MORE) for _ in range(count - 1)) + self._frame(LAST)

    def _frame(self, mark: bytes) -> bytes:
        room = self._size - _HEADROOM
        data = bytes(self._waiting[:room])
        del self._waiting[:room]
        plain = len(data).to_bytes(2, "little") + data.ljust(room, b"\0")
        return mark + self._aead.encrypt(self._nonce(), plain, mark)


def hash_of(body: bytes) -> bytes:
    """Return the SHA-256 of a sealed request, to which its answer is bound."""
    return hashlib.sha256(body).digest()
