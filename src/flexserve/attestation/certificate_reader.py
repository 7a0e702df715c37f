"""A certificate of a layer, as who verifies a chain reads it."""

from __future__ import annotations

import hashlib
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from flexserve.attestation.cose import MalformedError, decode, decode_key, signed_payload
from flexserve.attestation.layers import (
    AUTHORITY_DESCRIPTOR,
    CODE_DESCRIPTOR,
    CONFIG,
    DIGEST_SIZE,
    PROFILE,
    Layer,
    Mode,
    key_name,
)


def read_certificate(data: bytes, issuer: Ed25519PublicKey) -> tuple[Layer, Ed25519PublicKey]:
    """Return the layer that `issuer` certifies, and its key. Raises MalformedError unless it does."""
    claims = decode(signed_payload(data, issuer))
    match claims:
        case {
            1: str(by),
            2: str(to),
            -4670545: bytes(code),
            -4670548: bytes(config),
            -4670549: bytes(authority),
            -4670551: bytes(mode),
            -4670552: bytes(encoded),
            -4670553: b"\x20",
        }:
            pass
        case _:
            raise MalformedError("a claim is missing, or is of another type")
    key = decode_key(encoded)
    if by != key_name(issuer) or to != key_name(key):
        raise MalformedError("it names other keys than those that it is by and for")
    if len(code) != DIGEST_SIZE or len(authority) != DIGEST_SIZE or len(mode) != 1 or mode[0] > max(Mode):
        raise MalformedError("a digest or the mode is out of its bounds")
    if len(config) != DIGEST_SIZE and claims.get(CONFIG) != hashlib.sha512(config).digest():
        raise MalformedError("the digest of its configuration is another one")
    layer = Layer(
        code,
        config,
        authority,
        Mode(mode[0]),
        code_descriptor=_optional(claims, CODE_DESCRIPTOR, bytes),
        authority_descriptor=_optional(claims, AUTHORITY_DESCRIPTOR, bytes),
        profile=_optional(claims, PROFILE, str),
    )
    return layer, key


def _optional(claims: dict[int, Any], label: int, kind: type) -> Any:
    value = claims.get(label, kind())
    if not isinstance(value, kind):
        raise MalformedError("a claim is of another type")
    return value
