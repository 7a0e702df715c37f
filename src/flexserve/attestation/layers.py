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
from collections.abc import Sequence
from typing import Any

import cbor2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from flexserve.attestation.cose import encode_key, sign

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
_CODE, CODE_DESCRIPTOR, CONFIG, _CONFIG_DESCRIPTOR = -4670545, -4670546, -4670547, -4670548
_AUTHORITY, AUTHORITY_DESCRIPTOR, _MODE = -4670549, -4670550, -4670551
_KEY, _USAGE, PROFILE = -4670552, -4670553, -4670554
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
        claims[CODE_DESCRIPTOR] = layer.code_descriptor
    claims[_CONFIG_DESCRIPTOR] = layer.config
    if len(layer.config) != DIGEST_SIZE:
        claims[CONFIG] = hashlib.sha512(layer.config).digest()
    claims[_AUTHORITY] = layer.authority
    if layer.authority_descriptor:
        claims[AUTHORITY_DESCRIPTOR] = layer.authority_descriptor
    claims |= {_MODE: bytes([layer.mode]), _KEY: encode_key(key), _USAGE: _SIGNS_CERTIFICATES}
    if layer.profile:
        claims[PROFILE] = layer.profile
    return sign(cbor2.dumps(claims), issuer)


def chain_of(root: bytes | memoryview, layers: Sequence[Layer]) -> tuple[list[bytes], bytes | memoryview]:
    """Return the root's key, the certificates of the layers that it starts, and the last one's CDI."""
    cdi = root
    chain = [encode_key(key_of(cdi).public_key())]
    for layer in layers:
        issuer, cdi = key_of(cdi), next_cdi(cdi, layer)
        chain.append(certificate(issuer, layer, key_of(cdi).public_key()))
    return chain, cdi


def _derive(secret: bytes | memoryview, salt: bytes, purpose: bytes, size: int) -> bytes:
    return HKDF(SHA512(), length=size, salt=salt, info=purpose).derive(secret)
