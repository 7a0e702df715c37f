"""What the boot ROM hands on to the application at S-EL0, and what a client makes of it."""

from __future__ import annotations

import dataclasses
import time

import cbor2
import pytest

from flexserve.attestation.layers import key_of
from flexserve.attestation.policy import Policy
from flexserve.attestation.token import SealingKey, Token, write_token
from flexserve.attestation.verification import AttestationRefusedError, verify
from flexserve.emulator.handed_on import HandedOn, handed_on, reference_layers, reference_measurements
from flexserve.emulator.secure_os import firmware_with

IMAGE = firmware_with(b"firmware", b"FLEXSEOS, a secure OS", b"an application")
EL2, ROOT, AUTHORITY = b"a monitor", bytes(range(32)), bytes(64)
NONCE = bytes(32)


def token(handed: HandedOn) -> bytes:
    """Return what the application says, as Python says it."""
    now = int(time.time())
    sealing = SealingKey(bytes(1216), now + 60)
    measurements = cbor2.loads(handed.measurements)
    said = Token(NONCE, now, now + 60, "qemu-virt", True, "0.1.0", measurements, {}, (), sealing)
    return write_token(said, key_of(handed.secret))


def policy(image: bytes) -> Policy:
    return Policy(
        emulated="allow",
        layers={name: [digest.hex()] for name, digest in reference_layers(image, EL2).items()},
        measurements={name: [digest.hex()] for name, digest in reference_measurements(image).items()},
    )


def test_a_client_verifies_each_layer_up_to_the_application():
    handed = handed_on(ROOT, IMAGE, EL2, AUTHORITY)
    verified = verify(handed.chain, token(handed), NONCE, policy(IMAGE))
    assert [layer.name for layer in verified.layers] == ["el3", "el2", "secure-os", "application"]
    assert verified.unchecked == ("root", "models")


@pytest.mark.parametrize("part", [0, 1, 2])
def test_another_layer_has_another_secret_and_is_refused(part: int):
    parts = [b"firmware", b"FLEXSEOS, a secure OS", b"an application"]
    parts[part] += b"!"
    other = handed_on(ROOT, firmware_with(*parts), EL2, AUTHORITY)
    assert other.secret != handed_on(ROOT, IMAGE, EL2, AUTHORITY).secret
    with pytest.raises(AttestationRefusedError):
        verify(other.chain, token(other), NONCE, policy(IMAGE))


def test_who_has_another_secret_cannot_use_the_chain():
    handed = handed_on(ROOT, IMAGE, EL2, AUTHORITY)
    thief = dataclasses.replace(handed, secret=bytes(32))
    with pytest.raises(AttestationRefusedError, match="token"):
        verify(handed.chain, token(thief), NONCE, policy(IMAGE))
