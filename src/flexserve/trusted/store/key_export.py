"""The device key under a passphrase: a file to keep elsewhere, or to take to another machine.

    -----BEGIN FLEXSERVE DEVICE KEY-----
    Base64 of: magic | salt 16 | nonce 12 | AES-256-GCM of the root secret, with its tag
    -----END FLEXSERVE DEVICE KEY-----

The key of AES-256-GCM is Argon2id of the passphrase and the salt (RFC 9106: 3 passes over 256 MiB, 4 lanes).
The associated data is all that comes before the ciphertext.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
import textwrap
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from flexserve.errors import CallerError, StoredDataError
from flexserve.platforms.linux.secret_page import SecretPage
from flexserve.trusted.store.aead import KEY_SIZE, TAG_SIZE
from flexserve.trusted.store.files import NewFile, disk_errors, make_folder, read_errors, write_all
from flexserve.trusted.store.keys import DeviceKey, read_root, write_root

MIN_PASSPHRASE, MAX_PASSPHRASE = 12, 1024  # characters
_MAGIC = b"flexserve device key 1\0"
_SALT, _NONCE = 16, 12  # bytes
_FIRST, _LAST = "-----BEGIN FLEXSERVE DEVICE KEY-----", "-----END FLEXSERVE DEVICE KEY-----"
_MAX_FILE = 4096  # bytes
_PASSES, _LANES, _MEMORY = 3, 4, 256 << 10  # the memory in KiB


def export_key(device_key: Path, passphrase: str, target: Path) -> str:
    """Write the device key in `device_key` to `target`, under `passphrase`; return what names the device.

    Raises CallerError for a short passphrase or a `target` that exists, and as DeviceKey.load.
    """
    head = _MAGIC + secrets.token_bytes(_SALT) + secrets.token_bytes(_NONCE)
    page = SecretPage()
    root = read_root(device_key, page)
    sealed = head + _aead(passphrase, head).encrypt(head[-_NONCE:], root, head)
    text = "\n".join([_FIRST, *textwrap.wrap(base64.b64encode(sealed).decode(), 64), _LAST, ""])
    with disk_errors(f"Writing {target}"), NewFile(target) as file:
        write_all(file.fd, [memoryview(text.encode())], 0)
        try:
            file.publish()
        except FileExistsError:
            raise CallerError(f"{target} exists.", hint="Name another file, or move it away.") from None
    return DeviceKey(root).identity


def import_key(source: Path, passphrase: str, device_key: Path) -> str:
    """Make the key that `source` holds under `passphrase` the one in `device_key`; return the device's name.

    Raises CallerError for a wrong passphrase, and where there is a device key, which stays; StoredDataError
    for a file that holds none.
    """
    sealed = _read(source)
    head, ciphertext = sealed[: -KEY_SIZE - TAG_SIZE], sealed[-KEY_SIZE - TAG_SIZE :]
    if os.path.lexists(device_key):
        raise _occupied(device_key)
    try:
        root = _aead(passphrase, head).decrypt(head[-_NONCE:], ciphertext, head)
    except InvalidTag:
        raise CallerError(
            f"The passphrase is not that of {source}, or the file was changed.",
            hint="Try again, or take another copy of the file.",
            code="wrong_passphrase",
        ) from None
    make_folder(device_key.parent)
    try:
        write_root(device_key, root)
    except FileExistsError:
        raise _occupied(device_key) from None
    return DeviceKey.load(device_key).identity


def _aead(passphrase: str, head: bytes) -> AESGCM:
    if not MIN_PASSPHRASE <= len(passphrase) <= MAX_PASSPHRASE:
        raise CallerError(
            f"A passphrase has {MIN_PASSPHRASE} to {MAX_PASSPHRASE} characters.",
            hint="Several words that nobody guesses are good.",
            code="bad_passphrase",
        )
    salt = head[len(_MAGIC) : len(_MAGIC) + _SALT]
    derivation = Argon2id(salt=salt, length=KEY_SIZE, iterations=_PASSES, lanes=_LANES, memory_cost=_MEMORY)
    return AESGCM(derivation.derive(passphrase.encode()))


def _read(source: Path) -> bytes:
    """Return the bytes of an exported key. Raises CallerError, StoredDataError."""
    try:
        with source.open("rb") as file, read_errors(str(source)):
            lines = file.read(_MAX_FILE).decode("ascii", "replace").split()
    except OSError as error:
        raise CallerError(f"{source} cannot be read: {error.strerror}.", hint="Check its name.") from None
    text = " ".join(lines)
    sealed = b""
    if text.startswith(_FIRST) and text.endswith(_LAST):
        try:
            sealed = base64.b64decode("".join(text[len(_FIRST) : -len(_LAST)].split()), validate=True)
        except binascii.Error:
            sealed = b""
    if not sealed.startswith(_MAGIC) or len(sealed) != len(_MAGIC) + _SALT + _NONCE + KEY_SIZE + TAG_SIZE:
        raise StoredDataError(
            f"{source} holds no exported device key.", hint="`flexserve key export FILE` writes such a file."
        )
    return sealed


def _occupied(device_key: Path) -> CallerError:
    return CallerError(
        f"There is a device key {device_key}, and models that only it opens.",
        hint="Move it away first (keep it), or give another place with --device-key FILE.",
        code="device_key_exists",
    )
