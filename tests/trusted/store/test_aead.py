from __future__ import annotations

import hmac
import struct
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from flexserve.errors import StoredDataError
from flexserve.trusted.store.aead import ChunkCipher

KEY, SALT, MODEL = b"k" * 32, b"s" * 32, b"m" * 16
TEXT = b"weights" * 100


def cipher(**changed: object) -> ChunkCipher:
    values: dict[str, Any] = {
        "model_key": KEY,
        "salt": SALT,
        "kind": b"gguf",
        "version": 1,
        "model_id": MODEL,
    } | changed
    return ChunkCipher(**values)


def encrypt(stream: int = 2, index: int = 3, total: int = 4) -> tuple[bytearray, bytes]:
    target = bytearray(len(TEXT))
    tag = cipher().encrypt(stream, index, total, TEXT, memoryview(target))
    return target, tag


def test_what_was_encrypted_is_decrypted_in_place():
    data, tag = encrypt()
    assert data != TEXT
    cipher().decrypt(2, 3, 4, memoryview(data), tag)
    assert data == TEXT


def test_the_format_is_the_documented_one():
    """Computed another way: a change of key derivation, nonce or binding makes old files unreadable."""
    secret = hmac.digest(SALT, KEY, "sha256")
    key = hmac.digest(secret, b"flexserve gguf\x01", "sha256")
    nonce = struct.pack("<IQ", 2, 3)
    binding = b"gguf".ljust(16, b"\0") + struct.pack("<I", 1) + MODEL + struct.pack("<IQQ", 2, 3, 4)
    data, tag = encrypt()
    assert bytes(data) + tag == AESGCM(key).encrypt(nonce, TEXT, binding)


@pytest.mark.parametrize("place", [(1, 3, 4), (2, 2, 4), (2, 3, 5)])
def test_a_chunk_out_of_its_place_is_refused_and_wiped(place: tuple[int, int, int]):
    data, tag = encrypt()
    with pytest.raises(StoredDataError):
        cipher().decrypt(*place, memoryview(data), tag)
    assert data == bytes(len(TEXT))


@pytest.mark.parametrize(
    "changed",
    [
        {"model_key": b"x" * 32},
        {"salt": b"x" * 32},
        {"kind": b"image"},
        {"version": 0},
        {"model_id": b"x" * 16},
    ],
)
def test_a_chunk_of_another_file_is_refused(changed: dict[str, object]):
    data, tag = encrypt()
    with pytest.raises(StoredDataError):
        cipher(**changed).decrypt(2, 3, 4, memoryview(data), tag)
    assert data == bytes(len(TEXT))
