"""What a token says, as who verifies it reads it: signed by the right key, and with all its claims."""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from flexserve.attestation.cose import MalformedError, decode, signed_payload
from flexserve.attestation.token import (
    DEBUG_DISABLED,
    LICENCES,
    PROFILE,
    PROFILE_LABEL,
    AttestedModel,
    SealingKey,
    Token,
)

_SEALING_KEY_SIZE = 1216  # bytes: ML-KEM-768's, then X25519's


def read_token(data: bytes, key: Ed25519PublicKey) -> Token:
    """Return what the token `data` says. Raises MalformedError unless `key` signed it and it is ours."""
    claims = decode(signed_payload(data, key))
    if not isinstance(claims, dict) or claims.get(PROFILE_LABEL) != PROFILE:
        raise MalformedError("it is of another profile")
    match claims:
        case {
            4: int(expires),
            6: int(issued),
            10: bytes(nonce),
            259: bytes(hardware),
            263: int(debug),
            266: {"platform": dict(platform), "models": dict(models)},
            270: "flexserve",
            271: [str(version)],
            273: [[65000, bytes(measurements)]],
            -70001: {1: [0x647A, 1, 2], 2: bytes(public), 3: int(end)},
        } if len(claims) == 11 + (LICENCES in claims) and len(public) == _SEALING_KEY_SIZE:
            return Token(
                nonce,
                issued,
                expires,
                hardware.decode(errors="replace"),
                debug < DEBUG_DISABLED,
                version,
                _digests(decode(measurements)),
                _texts(platform),
                tuple(_model(*each) for each in models.items()),
                SealingKey(public, end),
                _licence_key(claims.get(LICENCES)),
            )
    raise MalformedError("a claim is missing, unknown, or of another type")


def _licence_key(value: Any) -> bytes:
    match value:
        case None:
            return b""
        case {1: [0x647A, 1, 2], 2: bytes(public)} if len(value) == 2 and len(public) == _SEALING_KEY_SIZE:
            return public
    raise MalformedError("its key for licences is none")


def _digests(value: Any) -> dict[str, bytes]:
    if not isinstance(value, dict) or not all(
        isinstance(name, str) and isinstance(digest, bytes) for name, digest in value.items()
    ):
        raise MalformedError("its measurements are no digests by name")
    return value


def _texts(value: dict[Any, Any]) -> dict[str, str]:
    if not all(isinstance(name, str) and isinstance(text, str) for name, text in value.items()):
        raise MalformedError("what it says of its platform is no texts by name")
    return value


def _model(digest: Any, said: Any) -> AttestedModel:
    match said:
        case [str(signer), int(generation)] if isinstance(digest, str):
            return AttestedModel(digest, signer, generation)
    raise MalformedError("what it says of a model is of another type")
