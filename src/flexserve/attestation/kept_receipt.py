"""A receipt as a client keeps it, with what it takes to verify it: which weights answered what."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from flexserve.attestation.cose import MalformedError, decode, signed_payload
from flexserve.attestation.policy import Policy
from flexserve.attestation.receipt import PROFILE, Receipt
from flexserve.attestation.token import ISSUED, RECEIPT
from flexserve.attestation.verification import AttestationRefusedError, Verified, verify
from flexserve.errors import CallerError


def read_receipt(signed: bytes, world_key: Ed25519PublicKey) -> Receipt:
    """Return what a receipt says. Raises MalformedError unless `world_key` signed it, as a receipt."""
    said = decode(signed_payload(signed, world_key, RECEIPT))
    if not isinstance(said, dict) or said.pop("profile", None) != PROFILE:
        raise MalformedError("it is of another profile")
    fields: dict[str, Any] = {str(name): value for name, value in said.items()}
    if fields.keys() != {field.name for field in dataclasses.fields(Receipt)}:
        raise MalformedError("a claim is missing, or unknown")
    for field in dataclasses.fields(Receipt):
        if type(fields[field.name]).__name__ != field.type:
            raise MalformedError(f"{field.name} is of another type")
    return Receipt(**fields)


class KeptReceipt(msgspec.Struct, frozen=True):
    """A receipt, and what it takes to verify it: the attestation that its client checked. `nonce`: hex."""

    receipt: bytes
    chain: list[bytes]
    token: bytes
    nonce: str

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it, bytes in base64."""
        return {
            "receipt": base64.b64encode(self.receipt).decode(),
            "chain": [base64.b64encode(each).decode() for each in self.chain],
            "token": base64.b64encode(self.token).decode(),
            "nonce": self.nonce,
        }


def load_receipt(path: Path) -> KeptReceipt:
    """Return the receipt in a file. Raises CallerError for a file that is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=KeptReceipt)
    except OSError as error:
        raise CallerError(
            f"{path} cannot be read: {error.strerror}.", hint="Name a receipt's file."
        ) from None
    except msgspec.MsgspecError:
        raise CallerError(
            f"{path} holds no receipt.", hint="`flexserve connect --receipts DIR` writes them."
        ) from None


def verify_receipt(kept: KeptReceipt, policy: Policy) -> tuple[Receipt, Verified]:
    """Return what a receipt says, and which secure world signed it, by the policy a good one.

    Raises AttestationRefusedError, which names what is wrong.
    """
    try:
        issued = decode(decode(kept.token)[2])[ISSUED]
        nonce = bytes.fromhex(kept.nonce)
        moment = float(issued)
    except (MalformedError, ValueError, TypeError, KeyError, IndexError):
        raise AttestationRefusedError("token", "one of a secure world", "something else") from None
    verified = verify(kept.chain, kept.token, nonce, policy, now=moment)
    try:
        receipt = read_receipt(kept.receipt, Ed25519PublicKey.from_public_bytes(verified.world_key))
    except MalformedError as error:
        raise AttestationRefusedError("receipt", "one signed by the secure world", str(error)) from None
    if receipt.token != hashlib.sha256(kept.token).digest():
        raise AttestationRefusedError("receipt", "one of this attestation", "one of another")
    return receipt, verified
