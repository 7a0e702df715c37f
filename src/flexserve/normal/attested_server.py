"""A server that a client asked who it is, and found to be what its policy calls good."""

from __future__ import annotations

import dataclasses
import secrets

from flexserve.attestation.policy import Policy
from flexserve.attestation.verification import Verified, verify
from flexserve.normal.client import Client
from flexserve.normal.known_roots import KnownRoots

_NONCE_SIZE = 32  # bytes


@dataclasses.dataclass(frozen=True, slots=True)
class AttestedServer:
    """What was verified, the token that said it, and whether its root was pinned just now."""

    verified: Verified
    token: bytes
    pinned_now: bool


def attested_server(client: Client, policy: Policy, roots: KnownRoots) -> AttestedServer:
    """Ask the server of `client` with a new nonce, and verify what it says.

    Where the policy names no root, the first one that this address shows is pinned in `roots`. Raises
    AttestationRefusedError, and what the client's methods raise.
    """
    nonce = secrets.token_bytes(_NONCE_SIZE)
    said = client.attestation(nonce)
    verified = verify(said.chain, said.token, nonce, policy)
    pinned_now = not policy.roots and roots.require(str(client.address), verified.root)
    return AttestedServer(verified, said.token, pinned_now)
