"""Licences: a content key for a device that proved, by the vendor's policy, what runs on it."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from flexserve.attestation.licence import USES, Licence, write_licence
from flexserve.attestation.policy import Policy
from flexserve.attestation.verification import AttestationRefusedError, Verified, verify
from flexserve.errors import CallerError
from flexserve.protocol.sealed_exchange import public_key
from flexserve.vendor.keys import Content, VendorKeys

_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_MOST = 1 << 16  # bytes of evidence
_HINT = "The device is not what your policy calls good: give it no key, or correct the policy."


class Evidence(msgspec.Struct, frozen=True):
    """What GET /v1/attestation answers: a chain and a token, in base64."""

    chain: list[bytes]
    token: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Terms:
    """What licences allow, and for how many seconds from their issue."""

    seconds: int
    uses: tuple[str, ...] = USES


def load_evidence(path: Path) -> Evidence:
    """Return the evidence in a file. Raises CallerError."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_MOST), type=Evidence)
    except OSError as error:
        raise CallerError(f"{path} cannot be read: {error.strerror}.", hint="Name its file.") from None
    except msgspec.MsgspecError:
        raise CallerError(
            f"{path} is no evidence.", hint="`flexserve attest --nonce HEX --evidence FILE` writes it."
        ) from None


def require_roots(policy: Policy) -> Policy:
    """Return `policy`. Raises CallerError when it names no root: anybody could imitate a good device."""
    if not policy.roots:
        raise CallerError(
            "The policy names no root, so anybody could imitate a good device.",
            hint="Put the roots of the devices into `roots`; `flexserve attest` shows a device's.",
            code="policy_without_roots",
        )
    return policy


def verified_device(chain: Sequence[bytes], token: bytes, nonce: bytes, policy: Policy) -> Verified:
    """Return a device that the policy calls good. Raises AttestationRefusedError, and as `require_roots`."""
    try:
        verified = verify(chain, token, nonce, require_roots(policy))
        if not verified.licences:
            raise AttestationRefusedError("key of licences", "one in the token", "none")
    except AttestationRefusedError as error:
        hint = error.hint if error.field == "debug status" else _HINT
        raise AttestationRefusedError(error.field, error.expected, error.found, hint) from None
    return verified


def issue(
    keys: VendorKeys, content: Content, device: Verified, terms: Terms, *, now: float | None = None
) -> bytes:
    """Return the licence of `content` for a verified device. `now`: seconds since 1970."""
    moment = time.time() if now is None else now
    licence = Licence(
        model=content.model,
        name=content.name,
        version=content.version,
        content=content.content,
        device=hashlib.sha256(device.licences).digest(),
        root=device.root,
        issued=int(moment * 1000),
        expires=int(moment) + terms.seconds,
        uses=terms.uses,
    )
    sealed = _SUITE.encrypt(content.key, public_key(device.licences), licence.binding())
    return write_licence(dataclasses.replace(licence, key=sealed), keys.signing)
