"""A request that is sealed to the secure world: who passes it on learns the model and a rounded length.

    magic 4 | key id 8 | token hash 32 | length of the model's name 2 | the name | HPKE enc 1120 | ciphertext

The first five are the header, and in the clear. HPKE (RFC 9180, base mode) is MLKEM768-X25519, HKDF-SHA-256,
AES-256-GCM; its `info` is INFO and the header, so that nobody can change a byte of it. The plaintext is a
4-byte length, so many bytes of MessagePack (`Content`), and zeros up to a power of two. Numbers are
little-endian, the name is UTF-8. A key id is the beginning of the SHA-256 of the public key, the token hash
the SHA-256 of the attestation that the sender checked.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from msgspec import Meta

from flexserve.errors import CallerError
from flexserve.protocol.bounds import Struct
from flexserve.protocol.messages import Convert, Embed, Generate, Query, Warm

MAGIC = b"FXS1"
INFO = b"flexserve sealed request 1\0"
PUBLIC_KEY = 1184 + 32  # bytes: of ML-KEM-768, then of X25519
PRIVATE_SEED = 64 + 32  # bytes, in the same order
TOKEN_HASH = 32  # bytes
KEY_ID = 8  # bytes
MIN_PADDED, MAX_PADDED = 1 << 10, 1 << 22  # bytes of the plaintext
_MAX_NAME = 512  # bytes; 128 characters
_FIXED = len(MAGIC) + KEY_ID + TOKEN_HASH + 2
_SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
OVERHEAD = hpke.KEM.MLKEM768_X25519.enc_length() + 16  # bytes that HPKE adds: what is encapsulated, and a tag

PublicKey = hpke.MLKEM768X25519PublicKey
PrivateKey = hpke.MLKEM768X25519PrivateKey
Asked = Generate | Embed | Convert | Warm | Query


class Content(Struct, frozen=True):
    """What is inside: `asked` with the number 0, and what it takes to answer it once, and to its sender only.

    `secret`: of the answer (protocol.sealed_answer). `id`: no other request has it. `time`: when it was made,
    in milliseconds since 1970. `owner`: a secret of the sender, who shares KV with nobody else.
    """

    secret: Annotated[bytes, Meta(min_length=32, max_length=32)]
    id: Annotated[bytes, Meta(min_length=16, max_length=16)]
    time: Annotated[int, Meta(ge=0, le=1 << 53)]
    owner: Annotated[bytes, Meta(min_length=32, max_length=32)]
    asked: Asked


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """What of a sealed request is in the clear. `model` is empty where none is asked."""

    key_id: bytes
    token_hash: bytes
    model: str

    def encoded(self) -> bytes:
        """Return it as it stands at the beginning of a body."""
        name = self.model.encode()
        return MAGIC + self.key_id + self.token_hash + len(name).to_bytes(2, "little") + name


def refusal() -> CallerError:
    """Return the one error of all sealed requests that cannot be opened, whatever is wrong with them."""
    return CallerError(
        "The sealed request was refused.",
        hint="Ask for a new attestation and seal the request again.",
        code="sealed_refused",
    )


def key_id_of(public: bytes) -> bytes:
    """Return the name of a public key."""
    return hashlib.sha256(public).digest()[:KEY_ID]


def key_pair(seed: bytes | None = None) -> tuple[PrivateKey, bytes]:
    """Return a private key and its public one, encoded: fresh ones, or those of `seed`.

    A seed has PRIVATE_SEED bytes: d and z of ML-KEM, then the private key of X25519.
    """
    if seed is None:
        kem, curve = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
    else:
        kem = MLKEM768PrivateKey.from_seed_bytes(seed[:64])
        curve = X25519PrivateKey.from_private_bytes(seed[64:])
    public = kem.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()
    return PrivateKey(kem, curve), public


def public_key(public: bytes) -> PublicKey:
    """Return the public key that `public` encodes. Raises ValueError."""
    if len(public) != PUBLIC_KEY:
        raise ValueError(f"a sealing key has {PUBLIC_KEY} bytes")
    kem, curve = public[:1184], public[1184:]
    return PublicKey(MLKEM768PublicKey.from_public_bytes(kem), X25519PublicKey.from_public_bytes(curve))


def padded_size(size: int) -> int:
    """Return the bytes that a content of `size` bytes takes, its length included."""
    return max(MIN_PADDED, 1 << (size + 4 - 1).bit_length())


def seal(content: Content, model: str, public: bytes, token_hash: bytes) -> bytes:
    """Return the body that asks `content` of `model` of whoever has the private key of `public`.

    Raises CallerError for a request that is too long, ValueError for what is no public key.
    """
    inner = msgspec.msgpack.encode(content)
    size = padded_size(len(inner))
    if size > MAX_PADDED:
        raise CallerError("The prompt is too long.", hint="Make it shorter.")
    header = Header(key_id_of(public), token_hash, model).encoded()
    plain = (len(inner).to_bytes(4, "little") + inner).ljust(size, b"\0")
    return header + _SUITE.encrypt(plain, public_key(public), INFO + header)


def header_of(body: bytes) -> Header:
    """Return the header of a sealed request. Raises CallerError (`refusal`) for anything but a right form."""
    try:
        length = int.from_bytes(body[_FIXED - 2 : _FIXED], "little")
        model = body[_FIXED : _FIXED + length].decode()
    except UnicodeDecodeError:
        raise refusal() from None
    padded = len(body) - _FIXED - length - OVERHEAD
    if (
        body[: len(MAGIC)] != MAGIC
        or length > _MAX_NAME
        or not MIN_PADDED <= padded <= MAX_PADDED
        or padded & (padded - 1)
    ):
        raise refusal()
    start = len(MAGIC)
    return Header(body[start : start + KEY_ID], body[start + KEY_ID : _FIXED - 2], model)


def unseal(body: bytes, key: PrivateKey) -> Content:
    """Return what a sealed request asks. Raises CallerError (`refusal`) for whatever is wrong with it."""
    header = header_of(body)
    end = len(header.encoded())
    try:
        plain = _SUITE.decrypt(body[end:], key, INFO + body[:end])
        length = int.from_bytes(plain[:4], "little")
        if length + 4 > len(plain) or any(plain[4 + length :]):
            raise refusal()
        content = msgspec.msgpack.decode(plain[4 : 4 + length], type=Content)
    except (InvalidTag, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise refusal() from None
    if model_of(content.asked) != header.model or number_of(content.asked):
        raise refusal()
    return content


def model_of(asked: Asked) -> str:
    """Return the model that is asked; empty: none."""
    return "" if isinstance(asked, Query) else asked.model


def number_of(asked: Asked) -> int:
    """Return the number that a request brings."""
    return asked.serial if isinstance(asked, Query) else asked.request
