"""A vendor's licence: the content key of a model, sealed to the key of one secure world, with its terms.

A COSE_Sign1 by the vendor's key, with a content type of its own, over a CBOR map.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import cbor2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from flexserve.attestation.cose import MalformedError, decode, sign, signed_payload

PROFILE = "urn:x-flexserve:licence:1"
KIND = "application/vnd.flexserve.licence+cbor"
MAX_SIZE = 4096  # bytes, signed
USES = ("text", "vectors", "ranks")
KEY_SIZE = 1168  # bytes: HPKE's encapsulated key, then the content key with its tag
_LABEL = b"flexserve content key 1\0"
_MAX = 1 << 53


@dataclasses.dataclass(frozen=True, slots=True)
class Licence:
    """What a licence says.

    `model`: the content's id. `name`, `version`: of the model. `content`: SHA-256 of the first block of the
    .flex file. `device`: SHA-256 of the public key that it is sealed to; `root`: the public key of the root
    that attested it. `issued`: milliseconds since 1970; of two licences the later one counts. `expires`:
    seconds since 1970. `uses`: of USES. `key`: the content key, sealed with `binding` as HPKE's info.
    """

    model: bytes
    name: str
    version: int
    content: bytes
    device: bytes
    root: bytes
    issued: int
    expires: int
    uses: tuple[str, ...]
    key: bytes = b""

    def binding(self) -> bytes:
        """Return what the content key is bound to: all that the licence says."""
        terms = _encoded(dataclasses.replace(self, key=b""))
        return _LABEL + hashlib.sha256(terms).digest()


def write_licence(licence: Licence, vendor: Ed25519PrivateKey) -> bytes:
    """Return `licence`, signed by its vendor."""
    return sign(_encoded(licence), vendor, KIND)


def read_licence(signed: bytes, vendor: Ed25519PublicKey) -> Licence:
    """Return what a licence says. Raises MalformedError unless `vendor` signed it, as a licence."""
    if len(signed) > MAX_SIZE:
        raise MalformedError("it is too long for a licence")
    match decode(signed_payload(signed, vendor, KIND)):
        case {
            "profile": "urn:x-flexserve:licence:1",
            "model": bytes(model),
            "name": str(name),
            "version": int(version),
            "content": bytes(content),
            "device": bytes(device),
            "root": bytes(root),
            "issued": int(issued),
            "expires": int(expires),
            "uses": list(uses),
            "key": bytes(key),
        } as said if len(said) == 11:
            pass
        case _:
            raise MalformedError("a field is missing, unknown, or of another type")
    if (len(model), len(content), len(device), len(root), len(key)) != (16, 32, 32, 32, KEY_SIZE):
        raise MalformedError("a field is of another length")
    if not all(0 < number < _MAX for number in (version, issued, expires)) or len(name) > 64:
        raise MalformedError("a field is out of its bounds")
    if not set(uses) <= set(USES):
        raise MalformedError("it allows a use that is unknown here")
    return Licence(model, name, version, content, device, root, issued, expires, tuple(uses), key)


def _encoded(licence: Licence) -> bytes:
    fields: dict[str, Any] = {"profile": PROFILE, **dataclasses.asdict(licence)}
    return cbor2.dumps({**fields, "uses": list(licence.uses)})
