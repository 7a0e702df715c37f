"""Layers of software, each with a key that depends on all that started before it: Open Profile for DICE.

    CDI of the next layer = KDF(CDI of this one, H(code, configuration, authority, mode, hidden))
    key of a layer        = Ed25519, from KDF(its CDI)

A layer certifies the key of the next one: a COSE_Sign1 over a CWT that says what was measured. Change one
byte of a layer, and it and all that it starts have other keys. The names, salts and labels are the profile's
(https://pigweed.googlesource.com/open-dice, docs/specification.md).
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from typing import Any

import cbor2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from flexserve.attestation.cose import MalformedError, decode, decode_key, encode_key, sign, signed_payload

DIGEST_SIZE = 64  # bytes: SHA-512
CDI_SIZE = 32
MAX_LAYERS = 8

_KEY_SALT = bytes.fromhex(
    "63b6a04d2c077fc10f639f21da793844356cc2b0b441b3a77124035c03f8e1be"
    "6035d31f282821a7450a02222ab1b3cff1679b05ab1ca5d1affb789ccd2b0b3b"
)
_ID_SALT = bytes.fromhex(
    "dbdbaebc8020da9ff0dd5a24c83aa5a54286dfc263031e329b4da148430659fe"
    "62cdb5b7e1e00fc680306711eb444af77209359496fcff1db9520ba51c7b29ea"
)
_ISSUER, _SUBJECT = 1, 2
_CODE, _CODE_DESCRIPTOR, _CONFIG, _CONFIG_DESCRIPTOR = -4670545, -4670546, -4670547, -4670548
_AUTHORITY, _AUTHORITY_DESCRIPTOR, _MODE = -4670549, -4670550, -4670551
_KEY, _USAGE, _PROFILE = -4670552, -4670553, -4670554
_SIGNS_CERTIFICATES = b"\x20"


class Mode(enum.IntEnum):
    """In which mode a layer runs."""

    NOT_CONFIGURED = 0
    NORMAL = 1
    DEBUG = 2
    RECOVERY = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Layer:
    """What is measured of a layer before it starts.

    `config` is either 64 bytes, or a descriptor of another length, which is hashed. `authority`: digest of
    the key that vouches for the code; zeros: nobody does. `code_descriptor` says what the code is.
    """

    code: bytes
    config: bytes = bytes(DIGEST_SIZE)
    authority: bytes = bytes(DIGEST_SIZE)
    mode: Mode = Mode.NOT_CONFIGURED
    hidden: bytes = bytes(DIGEST_SIZE)
    code_descriptor: bytes = b""
    authority_descriptor: bytes = b""
    profile: str = ""


def next_cdi(cdi: bytes | memoryview, layer: Layer) -> bytes:
    """Return the compound device identifier, a secret, of the layer that the owner of `cdi` starts."""
    config = layer.config
    if len(config) != DIGEST_SIZE:
        config = hashlib.sha512(config).digest()
    inputs = b"".join((layer.code, config, layer.authority, bytes([layer.mode]), layer.hidden))
    return _derive(cdi, hashlib.sha512(inputs).digest(), b"CDI_Attest", CDI_SIZE)


def key_of(cdi: bytes | memoryview) -> Ed25519PrivateKey:
    """Return the key of the layer whose CDI that is."""
    return Ed25519PrivateKey.from_private_bytes(_derive(cdi, _KEY_SALT, b"Key Pair", 32))


def key_name(key: Ed25519PublicKey) -> str:
    """Return what certificates call a key."""
    name = bytearray(_derive(key.public_bytes_raw(), _ID_SALT, b"ID", 20))
    name[0] &= 0x7F
    return name.hex()


def certificate(issuer: Ed25519PrivateKey, layer: Layer, key: Ed25519PublicKey) -> bytes:
    """Return the certificate of the layer that has `key`, by the one that started it."""
    claims: dict[int, Any] = {
        _ISSUER: key_name(issuer.public_key()),
        _SUBJECT: key_name(key),
        _CODE: layer.code,
    }
    if layer.code_descriptor:
        claims[_CODE_DESCRIPTOR] = layer.code_descriptor
    claims[_CONFIG_DESCRIPTOR] = layer.config
    if len(layer.config) != DIGEST_SIZE:
        claims[_CONFIG] = hashlib.sha512(layer.config).digest()
    claims[_AUTHORITY] = layer.authority
    if layer.authority_descriptor:
        claims[_AUTHORITY_DESCRIPTOR] = layer.authority_descriptor
    claims |= {_MODE: bytes([layer.mode]), _KEY: encode_key(key), _USAGE: _SIGNS_CERTIFICATES}
    if layer.profile:
        claims[_PROFILE] = layer.profile
    return sign(cbor2.dumps(claims), issuer)


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
    if len(config) != DIGEST_SIZE and claims.get(_CONFIG) != hashlib.sha512(config).digest():
        raise MalformedError("the digest of its configuration is another one")
    layer = Layer(
        code,
        config,
        authority,
        Mode(mode[0]),
        code_descriptor=_optional(claims, _CODE_DESCRIPTOR, bytes),
        authority_descriptor=_optional(claims, _AUTHORITY_DESCRIPTOR, bytes),
        profile=_optional(claims, _PROFILE, str),
    )
    return layer, key


def _optional(claims: dict[int, Any], label: int, kind: type) -> Any:
    value = claims.get(label, kind())
    if not isinstance(value, kind):
        raise MalformedError("a claim is of another type")
    return value


def _derive(secret: bytes | memoryview, salt: bytes, purpose: bytes, size: int) -> bytes:
    return HKDF(SHA512(), length=size, salt=salt, info=purpose).derive(secret)
