"""Evidence of what the secure world is: asked for with a nonce, and given (flexserve.attestation)."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from flexserve.protocol.bounds import Certificate, Message, Nonce, Serial
from flexserve.protocol.statuses import Failure


class Attest(Message, frozen=True):
    """Ask who the secure world is; `nonce` is the client's. Answered by Attested."""

    serial: Serial
    nonce: Nonce


class Attested(Message, frozen=True):
    """Answer to Attest: the root's key, the certificates of its layers, and a token (flexserve.attestation).

    `failure`: why there is none; the rest is empty then.
    """

    serial: Serial
    chain: Annotated[list[Certificate], Meta(max_length=8)]
    token: Certificate
    failure: Failure | None = None
