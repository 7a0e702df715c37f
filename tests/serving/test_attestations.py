"""Who asks for attestation gets an answer in turn, and at once where too many wait."""

from __future__ import annotations

import queue
import threading

import msgspec

from flexserve.errors import NormalWorldError
from flexserve.protocol.evidence import Attest, Attested
from flexserve.serving.attestations import Attestations

NONCE = bytes(32)


def test_each_is_answered_in_its_turn_and_one_that_fails_keeps_nobody_waiting() -> None:
    sent = queue.SimpleQueue[msgspec.Struct]()

    def attest(message: Attest) -> Attested:
        if message.serial == 2:
            raise NormalWorldError("Nobody has certified it.", code="not_certified")
        return Attested(message.serial, [b"chain"], b"token")

    attestations = Attestations(attest, sent.put)
    for serial in (1, 2, 3):
        attestations.ask(Attest(serial, NONCE))
    first, second, third = (sent.get(timeout=20) for _ in range(3))
    assert first == Attested(1, [b"chain"], b"token")
    assert isinstance(second, Attested)
    assert second.failure is not None
    assert (second.serial, second.failure.code, second.token) == (2, "not_certified", b"")
    assert third == Attested(3, [b"chain"], b"token")


def test_of_too_many_the_last_are_refused_at_once() -> None:
    sent, go_on = queue.SimpleQueue[msgspec.Struct](), threading.Event()

    def attest(message: Attest) -> Attested:
        assert go_on.wait(timeout=20)
        return Attested(message.serial, [], b"token")

    attestations = Attestations(attest, sent.put)
    for serial in range(100):
        attestations.ask(Attest(serial, NONCE))
    refused = sent.get(timeout=20)
    assert isinstance(refused, Attested)
    assert refused.failure is not None
    assert "Too many" in refused.failure.message
    go_on.set()
    answered = [sent.get(timeout=20) for _ in range(99)]
    assert sum(isinstance(it, Attested) and it.token == b"token" for it in answered) >= 64
