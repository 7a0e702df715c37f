"""The format of licences, and of a vendor's file, to the byte, as docs/private.md says it."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import cbor2
import cwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from vendors import Vendor

from flexserve.attestation.cose import MalformedError, sign
from flexserve.attestation.licence import KIND, read_licence, write_licence
from flexserve.trusted.identity.sealing import LicenceKey
from flexserve.trusted.store.manifest import BLOCK_SIZE

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "licence_vectors.json").read_text())


def vector(name: str) -> bytes:
    return bytes.fromhex(VECTORS[name])


VENDOR = Ed25519PublicKey.from_public_bytes(vector("vendor"))


def test_the_key_of_licences_comes_of_the_last_layers_secret():
    key = LicenceKey(vector("cdi"))
    assert key.public == vector("licence_key")
    assert key.digest == hashlib.sha256(vector("licence_key")).digest() == vector("device")
    secrets = HKDF(SHA512(), 96, None, b"flexserve licence key v1").derive(vector("cdi"))
    kem = MLKEM768PrivateKey.from_seed_bytes(secrets[:64]).public_key().public_bytes_raw()
    curve = X25519PrivateKey.from_private_bytes(secrets[64:]).public_key().public_bytes_raw()
    assert kem + curve == key.public


def test_a_licence_says_its_terms_and_opens_to_the_content_key():
    licence = read_licence(vector("licence"), VENDOR)
    terms = VECTORS["terms"]
    said = {
        name: value.hex() if isinstance(value := getattr(licence, name), bytes) else value for name in terms
    }
    assert said == {**terms, "uses": tuple(terms["uses"])}
    assert licence.binding() == vector("info")
    assert LicenceKey(vector("cdi")).open(licence) == vector("content_key")


def test_the_binding_is_the_digest_of_all_terms_with_an_empty_key():
    signed = cbor2.loads(vector("licence"))
    terms = {**cbor2.loads(signed[2]), "key": b""}
    expected = b"flexserve content key 1\0" + hashlib.sha256(cbor2.dumps(terms)).digest()
    assert expected == vector("info")


def test_another_implementation_of_cose_verifies_a_licence():
    key = cwt.COSEKey.new({1: 1, 3: -8, -1: 6, -2: vector("vendor"), 4: [2]})
    tagged = cbor2.dumps(cbor2.CBORTag(18, cbor2.loads(vector("licence"))))
    payload = cwt.COSE.new().decode(tagged, key)
    assert cbor2.loads(payload)["profile"] == "urn:x-flexserve:licence:1"


@pytest.mark.parametrize(
    "change",
    [
        {"profile": "urn:x-flexserve:licence:2"},
        {"version": 0},
        {"version": 1 << 60},
        {"issued": -1},
        {"model": b"short"},
        {"uses": ["everything"]},
        {"uses": "text"},
        {"key": b""},
        {"name": "x" * 65},
        {"more": 1},
    ],
    ids=str,
)
def test_what_is_out_of_its_bounds_is_no_licence_whoever_signed_it(change: dict[str, Any], vendor: Vendor):
    fields = cbor2.loads(cbor2.loads(vector("licence"))[2])
    signing = vendor.keys.signing
    assert read_licence(sign(cbor2.dumps(fields), signing, KIND), signing.public_key())
    with pytest.raises(MalformedError):
        read_licence(sign(cbor2.dumps({**fields, **change}), signing, KIND), signing.public_key())


def test_a_signature_of_something_else_is_no_licence(vendor: Vendor):
    signing = vendor.keys.signing
    payload = cbor2.loads(vector("licence"))[2]
    with pytest.raises(MalformedError):
        read_licence(sign(payload, signing), signing.public_key())
    with pytest.raises(MalformedError, match="too long"):
        read_licence(bytes(5000), signing.public_key())
    again = write_licence(read_licence(vector("licence"), VENDOR), signing)
    assert cbor2.loads(again)[2] == payload


def test_a_vendors_file_opens_by_the_documented_format_alone(vendor: Vendor, source: Path):
    data = vendor.seal(5).read_bytes()
    magic, form, length = struct.unpack_from("<8sII", data)
    assert (magic, form) == (b"FLEXVEND", 1)
    manifest = json.loads(data[16 : 16 + length])
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(manifest["vendor"]["key"]))
    public.verify(data[BLOCK_SIZE - 64 : BLOCK_SIZE], data[: BLOCK_SIZE - 64])
    assert hashlib.sha256(data[BLOCK_SIZE:]).hexdigest() == manifest["vendor"]["sealed"]
    model, salt, size = bytes.fromhex(manifest["model_id"]), bytes.fromhex(manifest["salt"]), manifest["size"]
    content = vendor.keys.content(model)
    key = AESGCM(HKDF(SHA256(), 32, salt, b"flexserve gguf").derive(content.key))
    chunks, plain, at = -(-size // (1 << 20)), b"", BLOCK_SIZE
    for index in range(chunks):
        count = min(1 << 20, size - len(plain)) + 16
        bound = struct.pack("<16sI16sIQQ", b"gguf", 1, model, 0, index, chunks)
        plain += key.decrypt(struct.pack("<IQ", 0, index), data[at : at + count], bound)
        at += count
    assert plain == source.read_bytes()
