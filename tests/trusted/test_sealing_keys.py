"""The keys that clients seal to: which are shown, for how long, and what becomes of them."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PublicKey, Suite

from flexserve.attestation.token import SealingKey
from flexserve.errors import CallerError
from flexserve.trusted.identity.sealing import LIFE, SealingKeys

SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
NOW = 1_800_000_000


def sealed(key: SealingKey, text: bytes = b"secret", info: bytes = b"info") -> bytes:
    kem, curve = key.public[:1184], key.public[1184:]
    public = MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(kem), X25519PublicKey.from_public_bytes(curve)
    )
    return SUITE.encrypt(text, public, info)


def test_what_is_sealed_to_the_key_that_is_shown_is_opened():
    keys = SealingKeys()
    assert keys.unseal(sealed(keys.current(NOW)), b"info", NOW) == b"secret"


def test_one_key_is_shown_for_half_of_its_life_and_then_the_next():
    keys = SealingKeys()
    first = keys.current(NOW)
    assert keys.current(NOW + LIFE // 2) == first
    second = keys.current(NOW + LIFE // 2 + 1)
    assert second.public != first.public
    assert keys.unseal(sealed(first), b"info", NOW + LIFE - 1) == b"secret"
    assert keys.unseal(sealed(second), b"info", NOW + LIFE - 1) == b"secret"


def test_a_key_whose_life_is_over_opens_nothing_and_is_wiped():
    keys = SealingKeys()
    first = keys.current(NOW)
    with pytest.raises(CallerError) as refused:
        keys.unseal(sealed(first), b"info", NOW + LIFE)
    assert refused.value.code == "not_sealed_to_us"
    assert bytes(keys._page.view(0, 96)) == bytes(96)


def test_keys_are_made_for_ever_in_the_same_places():
    keys = SealingKeys()
    shown = {keys.current(NOW + turn * (LIFE // 2 + 1)).public for turn in range(20)}
    assert len(shown) == 20


@pytest.mark.parametrize("spoil", ["info", "cut", "empty", "other"])
def test_whatever_is_wrong_is_refused_in_the_same_way(spoil: str):
    keys = SealingKeys()
    key = keys.current(NOW)
    body = {
        "info": sealed(key, info=b"another"),
        "cut": sealed(key)[:-1],
        "empty": b"",
        "other": sealed(SealingKeys().current(NOW)),
    }[spoil]
    with pytest.raises(CallerError) as refused:
        keys.unseal(body, b"info", NOW)
    assert refused.value.code == "not_sealed_to_us"
