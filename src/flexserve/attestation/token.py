"""The token: what a secure world says of itself, signed by its layer's key.

A COSE_Sign1 over an EAT (RFC 9711), with the integer labels of the standard and one of our own: the key to
which clients seal their requests, and its end of life.
"""

from __future__ import annotations

import dataclasses

import cbor2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flexserve.attestation.cose import sign

PROFILE = "urn:x-flexserve:attestation:1"
NONCE_SIZES = range(8, 65)  # bytes, by the standard
DEBUG_ENABLED, DEBUG_DISABLED = 0, 1

EXPIRES, ISSUED, NONCE = 4, 6, 10
HARDWARE, DEBUG, PROFILE_LABEL, SUBMODULES = 259, 263, 265, 266
SOFTWARE, VERSION, MEASUREMENTS = 270, 271, 273
SEALING, LICENCES = -70001, -70002  # of the range for private use
_DIGESTS = 65000  # content format of the measurements: CBOR, a map from names to digests (experimental range)
# HPKE's numbers of what the key is for: MLKEM768-X25519, HKDF-SHA256, AES-256-GCM.
_SUITE = (0x647A, 1, 2)
_SOFTWARE = "flexserve"
RECEIPT = "application/vnd.flexserve.receipt+cbor"  # what else the world's key signs


@dataclasses.dataclass(frozen=True, slots=True)
class SealingKey:
    """The public key of HPKE (MLKEM768-X25519, HKDF-SHA256, AES-256-GCM) to which requests are sealed.

    `public` is the encapsulation key of ML-KEM-768, then that of X25519. `end`: the second, since 1970, from
    which on the secure world does not have the private key any more.
    """

    public: bytes
    end: int


@dataclasses.dataclass(frozen=True, slots=True)
class AttestedModel:
    """A model of the store: SHA-256 of its GGUF, the public key of who signed it ("": the device), as hex."""

    digest: str
    signer: str = ""
    generation: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """What a token says. Times are seconds since 1970.

    `debug`: the root, or a layer, can be looked into or imitated by who runs the machine. `measurements`:
    digests (bytes) of what makes up the secure world, by name. `platform`: how it is protected, in names.
    `licences`: the public key, as the sealing key's, to which vendors seal the keys of models; empty: none.
    """

    nonce: bytes
    issued: int
    expires: int
    hardware: str
    debug: bool
    version: str
    measurements: dict[str, bytes]
    platform: dict[str, str]
    models: tuple[AttestedModel, ...]
    sealing: SealingKey
    licences: bytes = b""


def write_token(token: Token, key: Ed25519PrivateKey) -> bytes:
    """Return `token` signed by `key`."""
    claims = {
        EXPIRES: token.expires,
        ISSUED: token.issued,
        NONCE: token.nonce,
        HARDWARE: token.hardware.encode(),
        DEBUG: DEBUG_ENABLED if token.debug else DEBUG_DISABLED,
        PROFILE_LABEL: PROFILE,
        SUBMODULES: {
            "platform": token.platform,
            "models": {model.digest: [model.signer, model.generation] for model in token.models},
        },
        SOFTWARE: _SOFTWARE,
        VERSION: [token.version],
        MEASUREMENTS: [[_DIGESTS, cbor2.dumps(token.measurements)]],
        SEALING: {1: list(_SUITE), 2: token.sealing.public, 3: token.sealing.end},
    }
    if token.licences:
        claims[LICENCES] = {1: list(_SUITE), 2: token.licences}
    return sign(cbor2.dumps(claims), key)
