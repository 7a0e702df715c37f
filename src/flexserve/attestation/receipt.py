"""A receipt: the secure world's signed account of one answer, for who has to show later what was answered.

A COSE_Sign1 by the key that signs tokens, with a content type of its own, over a CBOR map.
"""

from __future__ import annotations

import dataclasses

import cbor2

PROFILE = "urn:x-flexserve:receipt:1"


@dataclasses.dataclass(frozen=True, slots=True)
class Receipt:
    """What a receipt says.

    `request`: SHA-256 of the request's MessagePack, as it was sealed. `answer`: SHA-256 of the text in UTF-8,
    or of the vectors. `gguf`: SHA-256 of the model's file; `base`: of the model that it changes, if it is an
    adapter. `token`: of the attestation that the client sealed
    to. `sampling`: JSON, with the seed that was used; empty for vectors. `label`: what protects the secure
    world. `time`: seconds since 1970. `counter`: of the receipts of this secure world.
    """

    model: str
    gguf: bytes
    base: bytes
    request: bytes
    answer: bytes
    token: bytes
    sampling: str
    prompt_tokens: int
    answer_tokens: int
    reason: str
    label: str
    time: int
    counter: int

    def encoded(self) -> bytes:
        """Return what is signed."""
        return cbor2.dumps({"profile": PROFILE, **dataclasses.asdict(self)})
