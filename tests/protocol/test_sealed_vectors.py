"""Vectors of the sealed protocol, opened here by nothing but primitives: as another implementation would."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from flexserve.protocol.framing import FrameDecoder
from flexserve.protocol.sealed_answer import SMALL, Answered
from flexserve.protocol.sealed_answer_reader import FrameOpener
from flexserve.protocol.sealed_request import open_request
from flexserve.testing.sealing_key import FixedKey

VECTORS = json.loads((Path(__file__).parent / "sealed_vectors.json").read_text())
BODY, SECRET, ANSWER = (bytes.fromhex(VECTORS[name]) for name in ("body", "secret", "answer"))
KEY = FixedKey(bytes.fromhex(VECTORS["seed"]))


def derived(salt: bytes, info: bytes) -> tuple[AESGCM, bytes]:
    both = HKDF(SHA256(), 44, salt, info).derive(SECRET)
    return AESGCM(both[:32]), both[32:]


def test_the_request_opens_as_it_is_documented():
    assert hashlib.sha256(KEY.public).hexdigest() == VECTORS["public_sha256"]
    header, sealed, ciphertext = BODY[:42], BODY[42 : 42 + 1168], BODY[42 + 1168 :]
    assert header == b"FXS1" + bytes(range(32, 64)) + b"\x04\x00tiny"
    assert KEY.unseal(sealed, b"flexserve sealed secret 1\0" + hashlib.sha256(header).digest()) == SECRET
    aead, nonce = derived(hashlib.sha256(header + sealed).digest(), b"flexserve sealed request 1\0")
    plain = aead.decrypt(nonce, ciphertext, None)
    assert len(plain) == 1024
    length = int.from_bytes(plain[:4], "little")
    content = msgspec.msgpack.decode(plain[4 : 4 + length])
    assert content == {
        "id": bytes.fromhex(VECTORS["id"]),
        "time": VECTORS["time"],
        "owner": bytes.fromhex(VECTORS["owner"]),
        "asked": bytes.fromhex(VECTORS["asked"]),
    }
    assert not any(plain[4 + length :])


def test_a_request_that_names_its_secret_opens_as_it_is_documented():
    body, secret = (bytes.fromhex(VECTORS[f"continued_{name}"]) for name in ("body", "secret"))
    header, name, ciphertext = body[:42], body[42:74], body[74:]
    assert header == b"FXS2" + bytes(range(32, 64)) + b"\x04\x00tiny"
    assert name == hashlib.sha256(b"flexserve next secret 1\0" + secret).digest()
    salt = hashlib.sha256(header + name).digest()
    both = HKDF(SHA256(), 44, salt, b"flexserve sealed request 1\0").derive(secret)
    plain = AESGCM(both[:32]).decrypt(both[32:], ciphertext, None)
    content = msgspec.msgpack.decode(plain[4 : 4 + int.from_bytes(plain[:4], "little")])
    assert content["next"] == bytes.fromhex(VECTORS["continued_next"])
    assert content["id"] == bytes.fromhex(VECTORS["continued_id"])
    assert open_request(body, lambda _name, _info: secret).content.next == content["next"]


def test_the_answer_opens_as_it_is_documented():
    nonce, frames = ANSWER[:32], ANSWER[32:]
    aead, base = derived(hashlib.sha256(BODY).digest() + nonce, b"flexserve sealed answer 1\0")
    stream = b""
    for number in range(len(frames) // 1024):
        frame = frames[1024 * number : 1024 * (number + 1)]
        own = (int.from_bytes(base, "big") ^ number).to_bytes(12, "big")
        plain = aead.decrypt(own, frame[1:], frame[:1])
        stream += plain[2 : 2 + int.from_bytes(plain[:2], "little")]
        assert frame[0] == (1024 * (number + 1) == len(frames))
    assert stream == bytes.fromhex(VECTORS["stream"])


def test_ours_opens_them_too():
    opened = open_request(BODY, KEY.unseal)
    assert (opened.secret, opened.asked.model) == (SECRET, "tiny")  # type: ignore[union-attr]
    opener = FrameOpener(SECRET, hashlib.sha256(BODY).digest(), ANSWER[:32], SMALL)
    messages = opener.feed(ANSWER[32:])
    opener.end()
    assert messages == FrameDecoder(Answered).feed(bytes.fromhex(VECTORS["stream"]))
