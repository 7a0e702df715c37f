"""A relay that was taken over, against who the clients believe that they talk to.

It passes attestation on, so it can keep, exchange and change all of it. Each attack is made against a client
that verifies; its control is the same client, which has to accept what the secure world itself says.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Protocol

from flexserve.attacks.attempt import Gained, Pointless
from flexserve.attestation.measurement import Measurement
from flexserve.attestation.policy import Policy
from flexserve.attestation.verification import AttestationRefusedError, Verified, verify
from flexserve.harness.worlds import DrivenWorld
from flexserve.protocol.evidence import Attested
from flexserve.trusted.identity.identity import Facts, Identity


class Attacked(Protocol):
    """A scene with a secure world that attests."""

    @property
    def secret(self) -> DrivenWorld:
        """The secure world under attack."""


def answer_with_an_old_token(scene: Attacked) -> str:
    """Answer a new question with a token that was kept."""
    kept, nonce = _asked(scene)
    return _refused(kept, secrets.token_bytes(32), _trusting(kept, nonce))


def keep_a_token_for_later(scene: Attacked) -> str:
    """Show a client a token, and the sealing key in it, after its time."""
    said, nonce = _asked(scene)
    return _refused(said, nonce, _trusting(said, nonce), now=time.time() + 10 * 24 * 3600)


def imitate_the_world(scene: Attacked) -> str:
    """Make a chain and a token of its own that claim the same code and models, and another key."""
    said, nonce = _asked(scene)
    good = _verified(said, nonce)
    facts = Facts(good.hardware, good.platform, list(good.models))
    # It has no better way than to sign for itself: the root's key never leaves the key's holder.
    own = Identity(secrets.token_bytes(32), lambda: _claimed(good), 0.0, {})
    made = own.attest(nonce, facts)
    return _refused(Attested(0, made.chain, made.token), nonce, _trusting(said, nonce))


def join_two_worlds(scene: Attacked) -> str:
    """Join the chain of the secure world to a token of the relay's own."""
    said, nonce = _asked(scene)
    good = _verified(said, nonce)
    own = Identity(secrets.token_bytes(32), lambda: _claimed(good), 0.0, {})
    made = own.attest(nonce, Facts(good.hardware, good.platform, list(good.models)))
    return _refused(Attested(0, said.chain, made.token), nonce, _trusting(said, nonce))


def change_a_token(scene: Attacked) -> str:
    """Put another sealing key into the token."""
    said, nonce = _asked(scene)
    public = _verified(said, nonce).sealing.public
    forged = said.token.replace(public, hashlib.sha512(public).digest() * 19)
    changed = Attested(0, said.chain, forged)
    return _refused(changed, nonce, _trusting(said, nonce))


def pass_for_hardware(scene: Attacked) -> str:
    """Have a root that is only of software or emulated pass for one of hardware."""
    said, nonce = _asked(scene)
    return _refused(said, nonce, Policy(roots=[_verified(said, nonce).root.hex()]))


ATTACKS = (
    answer_with_an_old_token,
    keep_a_token_for_later,
    imitate_the_world,
    join_two_worlds,
    change_a_token,
    pass_for_hardware,
)


# ---- the client ----------------------------------------------------------------------------------


def _asked(scene: Attacked) -> tuple[Attested, bytes]:
    """Return what the secure world says, and the nonce that it was asked with."""
    nonce = secrets.token_bytes(32)
    return scene.secret.attest(nonce), nonce


def _verified(said: Attested, nonce: bytes) -> Verified:
    try:
        return verify(said.chain, said.token, nonce, Policy(emulated="allow"))
    except AttestationRefusedError as error:
        raise Pointless(f"not even the secure world's own token is accepted: {error}") from error


def _trusting(said: Attested, nonce: bytes) -> Policy:
    """Return the policy of a client that knows the secure world's root, and accepts it."""
    return Policy(emulated="allow", roots=[_verified(said, nonce).root.hex()])


def _claimed(good: Verified) -> Measurement:
    return Measurement(dict(good.measurements), 0.0)


def _refused(said: Attested, nonce: bytes, policy: Policy, now: float | None = None) -> str:
    """Return why the client refuses. Raises Gained when it does not."""
    try:
        verify(said.chain, said.token, nonce, policy, now=now)
    except AttestationRefusedError as error:
        return f"the client refuses it by {error.field}"
    raise Gained("the client accepted it")
