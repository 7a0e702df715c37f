"""A request that is sealed to the secure world: who passes it on learns the model and a rounded length.

    magic 4 | token hash 32 | length of the model's name 2 | the name | sealed secret 1168 | ciphertext

The first four are the header, and in the clear. Nobody can change a byte of it, since both that follow depend
on it. The token hash is the SHA-256 of the attestation that the sender checked.

- The secret is 32 random bytes, sealed by HPKE (RFC 9180, base mode) with MLKEM768-X25519, HKDF-SHA-256 and
  AES-256-GCM; its `info` is INFO and the SHA-256 of the header. Who has the private key opens this alone.
- Who asked before may put 32 bytes in the place of the sealed secret, behind the magic FXS2: the name of the
  secret that an earlier request brought for a later one (`Content.next`). It is good once, and soon.
- The ciphertext is AES-256-GCM's. Its key (32 bytes) and nonce (12) are HKDF-SHA-256 over the secret, with
  BODY_INFO; the salt is the SHA-256 of the header and the sealed secret. The plaintext is a 4-byte length,
  so many bytes of MessagePack (`Content`), and zeros up to a power of two.

Numbers are little-endian, the name is UTF-8.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Meta

from flexserve.errors import CallerError
from flexserve.protocol.bounds import Struct
from flexserve.protocol.messages import Query
from flexserve.protocol.requests import Convert, Embed, Generate, Warm

MAGIC, CONTINUED = b"FXS1", b"FXS2"
INFO = b"flexserve sealed secret 1\0"
BODY_INFO = b"flexserve sealed request 1\0"
NAME_INFO = b"flexserve next secret 1\0"
SECRET = 32  # bytes
NAME = 32  # bytes
TOKEN_HASH = 32  # bytes
MIN_PADDED, MAX_PADDED = 1 << 10, 1 << 22  # bytes of the plaintext
_MAX_NAME = 512  # bytes; 128 characters
_FIXED = len(MAGIC) + TOKEN_HASH + 2
_TAG = 16
SEALED_SECRET = hpke.KEM.MLKEM768_X25519.enc_length() + SECRET + _TAG
OVERHEAD = SEALED_SECRET + _TAG
_BEFORE_CIPHERTEXT = {MAGIC: SEALED_SECRET, CONTINUED: NAME}  # bytes behind the header

Asked = Generate | Embed | Convert | Warm | Query
Unseal = Callable[[bytes, bytes], bytes]  # what was sealed with an `info`, or named. Raises CallerError


class Content(Struct, frozen=True):
    """What is inside: `asked`, and what it takes to answer it once.

    `id`: no other request has it. `time`: when it was made, in milliseconds since 1970. `owner`: a secret of
    the sender, who shares KV with nobody else. `asked`: MessagePack of a message (`Asked`) with the number 0.
    `next`: the secret of a request to come ("": there is none), which is named then.
    """

    id: Annotated[bytes, Meta(min_length=16, max_length=16)]
    time: Annotated[int, Meta(ge=0, le=1 << 53)]
    owner: Annotated[bytes, Meta(min_length=32, max_length=32)]
    asked: bytes
    next: Annotated[bytes, Meta(max_length=SECRET)] = b""


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """A sealed request that was opened: its content, what that asks, and the secret of its answer."""

    content: Content
    asked: Asked
    secret: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """What of a sealed request is in the clear. `model` is empty where none is asked. `magic`: which form."""

    token_hash: bytes
    model: str
    magic: bytes = MAGIC

    def encoded(self) -> bytes:
        """Return it as it stands at the beginning of a body."""
        name = self.model.encode()
        return self.magic + self.token_hash + len(name).to_bytes(2, "little") + name


def refusal() -> CallerError:
    """Return the one error of all sealed requests that cannot be opened, whatever is wrong with them."""
    return CallerError(
        "The sealed request was refused.",
        hint="Ask for a new attestation and seal the request again.",
        code="sealed_refused",
    )


def header_of(body: bytes) -> Header:
    """Return the header of a sealed request. Raises CallerError (`refusal`) for anything but a right form."""
    try:
        length = int.from_bytes(body[_FIXED - 2 : _FIXED], "little")
        model = body[_FIXED : _FIXED + length].decode()
    except UnicodeDecodeError:
        raise refusal() from None
    magic = bytes(body[: len(MAGIC)])
    padded = len(body) - _FIXED - length - _BEFORE_CIPHERTEXT.get(magic, 0) - _TAG
    if (
        magic not in _BEFORE_CIPHERTEXT
        or length > _MAX_NAME
        or not MIN_PADDED <= padded <= MAX_PADDED
        or padded & (padded - 1)
    ):
        raise refusal()
    return Header(body[len(MAGIC) : _FIXED - 2], model, magic)


def open_request(body: bytes, unseal: Unseal) -> Opened:
    """Return what a sealed request asks; `unseal` brings its secret.

    Raises CallerError (`refusal`) for whatever is wrong with it.
    """
    header = header_of(body)
    encoded = header.encoded()
    end = len(encoded) + _BEFORE_CIPHERTEXT[header.magic]
    try:
        secret = unseal(body[len(encoded) : end], info(encoded))
        aead, nonce = body_key(secret, body[:end])
        plain = aead.decrypt(nonce, body[end:], None)
        length = int.from_bytes(plain[:4], "little")
        if length + 4 > len(plain) or any(plain[4 + length :]):
            raise refusal()
        content = msgspec.msgpack.decode(plain[4 : 4 + length], type=Content)
        asked = msgspec.msgpack.decode(content.asked, type=Asked)
    except (CallerError, InvalidTag, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise refusal() from None
    if model_of(asked) != header.model or number_of(asked):
        raise refusal()
    return Opened(content, asked, secret)


def info(header: bytes) -> bytes:
    """Return HPKE's `info` of the secret of a request with this header."""
    return INFO + hashlib.sha256(header).digest()


def name_of(secret: bytes) -> bytes:
    """Return by which NAME bytes a request names the secret that an earlier one brought."""
    return hashlib.sha256(NAME_INFO + secret).digest()


def body_key(secret: bytes, clear: bytes) -> tuple[AESGCM, bytes]:
    """Return what encrypts the one body whose part in the clear is `clear`, and its nonce."""
    derived = HKDF(SHA256(), 44, hashlib.sha256(clear).digest(), BODY_INFO).derive(secret)
    return AESGCM(derived[:32]), derived[32:]


def model_of(asked: Asked) -> str:
    """Return the model that is asked; empty: none."""
    return "" if isinstance(asked, Query) else asked.model


def number_of(asked: Asked) -> int:
    """Return the number that a request brings."""
    return asked.serial if isinstance(asked, Query) else asked.request
