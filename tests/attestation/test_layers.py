"""Layers' keys and certificates, to the bit as Open DICE's own implementation makes them.

The values are those of include/dice/known_test_values.h of github.com/google/open-dice at a483025, which is
under the Apache License 2.0, and the inputs those of its tests.
"""

from __future__ import annotations

import hashlib

import pytest

from flexserve.attestation.certificate_reader import read_certificate
from flexserve.attestation.cose import MalformedError
from flexserve.attestation.layers import Layer, Mode, certificate, key_of, next_cdi

ZERO_CDI = "fbfc679771342eeacb908659ce49d6b63b4535da2c51433d7f04efa6319e0c19"
HASH_CDI = "084ef406c69ba74b1e24d062f9ab8a8d89da6e03e4c6b122857cf74fd6a4bee5"
DESCRIPTOR_CDI = "20d50c685ad9e2df77607868190024c2044fb8de79aa9f5f12fca8da3708a310"
ZERO_CERTIFICATE = (
    "8443a10127a059016ea80178283761303665656534316237383966343836336438366238373738623161323031613666"
    "656464353602782836376332326138383539303632623938363831386538653732623062636439663539333439633839"
    "3a0047445058400000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "00000000000000000000000000000000000000000000003a004744535840000000000000000000000000000000000000"
    "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000003a00"
    "474454584000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "0000000000000000000000000000000000000000003a0047445641003a00474457582da5010103270481022006215820"
    "0d14e5de292eb1c8b31beae43ab55d8e9dc014b73eaa83b925a0788cc62e5c8d3a0047445841205840f99bd6dbc12471"
    "53c10f881c0f5f33bf0223d22232712441b128d383de321b67c09a1f4591c420dcc9d62121eca3d3897a244dcbe11a0f"
    "9ab79f67093fee560f"
)
HASH_CERTIFICATE = (
    "8443a10127a059016ea80178283437353730386562336234323666333836636663653866336261663534333930343632"
    "373864666102782830643034306532663436303035326135333131633162393164626639623434303833333265633239"
    "3a004744505840b7d40ccb225ba5788f98ff9e869375f690ac50cf9ebd0afeb1d9c24e5219e4de29e561f3f929e84087"
    "7add174805897e2bcb5479cc66f1b313290c6896b2bb8f3a004744535840cf997bea2e2c86a07b5209c8b53c41122928"
    "1a820d499c95cb0b1b311a019cf2661ad9b5ce5259cbf4819b21af325d07a01e91596f0655108e2e08885228867f3a00"
    "474454584022526017ef2ca1f6cbed39d5e2aa6520fbad8293e578232297c16e6a4e36d76a61390821d4fe925f362deb"
    "5dbb328be3944fbe1b21f9cc237341b6b9b698d0bc3a0047445641003a00474457582da5010103270481022006215820"
    "5a3949678cd30e88ab1cddf71555d5bfd3f0b84725a958e1b9da4eb5f1389a5a3a00474458412058408299ff8455cbf9"
    "99894899121d0440cf90a4bc614f0d2e772e9c8faaddf42fe214d2424a029e1d24720b08b671c7766425fb03cfd66f2f"
    "9a15c8ad479af31601"
)


def fake(seed: str, size: int) -> bytes:
    """Return Open DICE's made-up input of that name: SHA-512 again and again, counted in its first bytes."""
    state = bytearray(hashlib.sha512(seed.encode()).digest())
    made = b""
    while len(made) < size:
        made += hashlib.sha512(state).digest()
        count = int.from_bytes(state[:8], "little") + 1
        state[:8] = (count % (1 << 64)).to_bytes(8, "little")
    return made[:size]


def hashes_only() -> Layer:
    return Layer(fake("code_hash", 64), fake("inline_config", 64), fake("authority_hash", 64))


def described() -> Layer:
    return Layer(
        fake("code_hash", 64),
        fake("config_desc", 40),
        fake("authority_hash", 64),
        code_descriptor=fake("code_desc", 100),
        authority_descriptor=fake("authority_desc", 65),
    )


def test_a_layers_secret_is_open_dices():
    assert next_cdi(bytes(32), Layer(bytes(64))).hex() == ZERO_CDI
    assert next_cdi(fake("cdi_attest", 32), hashes_only()).hex() == HASH_CDI
    assert next_cdi(fake("cdi_attest", 32), described()).hex() == DESCRIPTOR_CDI


@pytest.mark.parametrize(
    ("cdi", "layer", "expected"),
    [
        (bytes(32), Layer(bytes(64)), ZERO_CERTIFICATE),
        (fake("cdi_attest", 32), hashes_only(), HASH_CERTIFICATE),
    ],
)
def test_a_certificate_is_open_dices_to_the_byte(cdi: bytes, layer: Layer, expected: str):
    key = key_of(next_cdi(cdi, layer)).public_key()
    assert certificate(key_of(cdi), layer, key).hex() == expected


@pytest.mark.parametrize("layer", [Layer(bytes(64)), hashes_only(), described()])
def test_a_certificate_says_what_was_measured(layer: Layer):
    key = key_of(next_cdi(bytes(32), layer)).public_key()
    made = certificate(key_of(bytes(32)), layer, key)
    said, certified = read_certificate(made, key_of(bytes(32)).public_key())
    assert (said, certified.public_bytes_raw()) == (layer, key.public_bytes_raw())


def test_every_measurement_changes_a_layers_key_and_all_that_follow():
    layers = [
        Layer(b"c" * 64),
        Layer(b"d" * 64),
        Layer(b"c" * 64, config=b"other"),
        Layer(b"c" * 64, authority=b"a" * 64),
        Layer(b"c" * 64, mode=Mode.DEBUG),
    ]
    after = {next_cdi(next_cdi(bytes(32), layer), Layer(bytes(64))) for layer in layers}
    assert len(after) == len(layers)


def test_a_certificate_with_any_byte_changed_is_refused():
    key = key_of(bytes(32))
    made = certificate(key, hashes_only(), key.public_key())
    for place in range(len(made)):
        forged = bytearray(made)
        forged[place] ^= 1
        with pytest.raises(MalformedError):
            read_certificate(bytes(forged), key.public_key())


def test_a_certificate_by_another_key_is_refused():
    made = certificate(key_of(bytes(32)), hashes_only(), key_of(bytes(32)).public_key())
    with pytest.raises(MalformedError):
        read_certificate(made, key_of(b"x" * 32).public_key())
