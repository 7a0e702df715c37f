"""Signed CBOR: COSE_Sign1 with Ed25519 (RFC 9052, RFC 9053), and a strict reader of CBOR."""

from __future__ import annotations

from typing import Any

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MAX_SIZE = 1 << 16  # bytes of one message
_ALGORITHM, _CONTENT_TYPE = 1, 3
_EDDSA = -8
_OKP, _ED25519, _VERIFY = 1, 6, 2


class MalformedError(ValueError):
    """Bytes are not what they should be; the text says in which way, and quotes nothing."""


def decode(data: bytes) -> Any:
    """Return what `data` says: integers, bytes, texts, booleans, null, and lists and maps of such.

    Raises MalformedError for anything else, for what is not encoded in the shortest way, and for a key that
    comes twice.
    """
    try:
        value = cbor2.loads(data) if len(data) <= MAX_SIZE else cbor2.undefined
        strict = _is_plain(value) and cbor2.dumps(value) == data
    except (cbor2.CBORError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError):
        strict = False
    if not strict:
        raise MalformedError("it is not CBOR in its one strict form")
    return value


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, int | str) and _is_plain(each) for key, each in value.items())
    return value is None or isinstance(value, int | bytes | str)


def sign(payload: bytes, key: Ed25519PrivateKey, kind: str = "") -> bytes:
    """Return a COSE_Sign1, without a tag, of `payload`, whose content type is `kind`."""
    return cbor2.dumps([_protected(kind), {}, payload, key.sign(_signed(payload, kind))])


def signed_payload(message: bytes, key: Ed25519PublicKey, kind: str = "") -> bytes:
    """Return the payload of the COSE_Sign1 `message`.

    Raises MalformedError unless `key` signed it as content of that `kind`.
    """
    match decode(message):
        case [bytes(protected), dict(open_), bytes(payload), bytes(signature)]:
            if protected != _protected(kind) or open_:
                raise MalformedError("it is not signed by EdDSA alone, or as something else")
            try:
                key.verify(signature, _signed(payload, kind))
            except InvalidSignature:
                raise MalformedError("its signature is not by the key that should have signed it") from None
            return payload
    raise MalformedError("it is no COSE_Sign1")


def _protected(kind: str) -> bytes:
    return cbor2.dumps({_ALGORITHM: _EDDSA, **({_CONTENT_TYPE: kind} if kind else {})})


def _signed(payload: bytes, kind: str) -> bytes:
    return cbor2.dumps(["Signature1", _protected(kind), b"", payload])


def encode_key(key: Ed25519PublicKey) -> bytes:
    """Return a COSE_Key for verifying."""
    return cbor2.dumps({1: _OKP, 3: _EDDSA, 4: [_VERIFY], -1: _ED25519, -2: key.public_bytes_raw()})


def decode_key(data: bytes) -> Ed25519PublicKey:
    """Return the key of a COSE_Key as `encode_key` makes it. Raises MalformedError."""
    match decode(data):
        case {-2: bytes(raw)} if len(raw) == 32:
            key = Ed25519PublicKey.from_public_bytes(raw)
            if encode_key(key) == data:
                return key
    raise MalformedError("it is no key of Ed25519 for verifying")
