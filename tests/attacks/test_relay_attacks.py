"""A relay that was taken over deceives no client that verifies, and every one that does not."""

from __future__ import annotations

import pytest

from flexserve.attacks import relay
from flexserve.attacks.attempt import Attempt, Verdict, attempt
from flexserve.attestation.policy import Policy
from flexserve.protocol.evidence import Attested
from flexserve.testing.scripted_world import FACTS, IDENTITY


class World:
    """What attests as a secure world does."""

    def attest(self, nonce: bytes) -> Attested:
        said = IDENTITY.attest(nonce, FACTS)
        return Attested(1, said.chain, said.token)


class Scene:
    secret = World()


def made(attack) -> Attempt:
    return attempt(attack, Scene())


@pytest.mark.parametrize("attack", relay.ATTACKS, ids=lambda attack: attack.__name__)
def test_an_attack_on_a_client_that_verifies_is_stopped_and_says_by_what(attack):
    found = made(attack)
    assert found.verdict is Verdict.STOPPED, found
    assert "refuses it by" in found.detail


def test_a_client_that_asks_for_nothing_is_imitated(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(relay, "_trusting", lambda *_: Policy(emulated="allow"))
    assert made(relay.imitate_the_world).verdict is Verdict.SUCCEEDED
