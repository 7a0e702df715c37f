"""The device key: one root secret in a private file, outside the store.

Everything the store holds is useless without it, and nothing it holds can be forged without it.
Two keys are derived from the root secret: one wraps the models' keys (AES-256-GCM), one signs
their manifests (Ed25519). So are the secrets that the keys of attestation begin with, and the keys
of what is kept of vendors' models. Whoever can read the file can open every model that this device
sealed: on a machine with a secure element, this is the secret to move there.

Who seals models has a `DeviceKey`. The secure process, in which llama.cpp runs, never does: it asks another
process, which holds it (trusted.store.held_key).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path
from typing import Protocol

import msgspec
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from flexserve.errors import CallerError, StoredDataError
from flexserve.platforms.linux.secret_page import SecretPage
from flexserve.private_files import check_folder, unsafe
from flexserve.trusted.store.aead import KEY_SIZE, TAG_SIZE, derive_into, derive_key
from flexserve.trusted.store.files import NewFile, disk_errors, make_folder, sweep, write_all

SIGNATURE_SIZE = 64
WRAPPED_SIZE = 12 + KEY_SIZE + TAG_SIZE  # nonce, encrypted key, tag

_PURPOSES = (b"wrap model keys v1", b"sign manifests v1", b"attestation root v1", b"keep vendors' models v1")
_UNSAFE = "device_key_unsafe"
_SALT = b""  # the root secret is uniformly random already: HKDF needs no salt to extract from it


class Unlocked(msgspec.Struct, frozen=True, tag=True):
    """What a vendor's model is opened with: its content key, that of what is kept of it here, the ledger."""

    key: bytes
    local: bytes
    entry: bytes


class Sealer(Protocol):
    """Who seals a model: it keeps the content key, and signs the manifest."""

    @property
    def identity(self) -> str:
        """What names the device that can open it; no secret."""

    def wrap(self, model_id: bytes, key: bytes) -> bytes:
        """Return what the manifest has of the content key: WRAPPED_SIZE bytes, bound to `model_id`."""

    def sign(self, data: bytes) -> bytes:
        """Return a signature of `data`: SIGNATURE_SIZE bytes."""


class Device(Sealer, Protocol):
    """What a store asks of the device key, whoever holds it. Each method is as DeviceKey's."""

    def unwrap(self, model_id: bytes, wrapped: bytes) -> bytes:
        """Return the key that `wrap` encrypted."""

    def unlock(self, block: bytes, licence: bytes, entry: bytes) -> Unlocked:
        """Return what a vendor's model is opened with, if its licence allows it. See licence.Licences."""

    def verify(self, data: bytes, signature: bytes) -> None:
        """Raise unless `signature` is this device's signature of `data`."""


class DeviceKey:
    """What makes this device this device. Never printed, never pickled."""

    __slots__ = ("_page", "_public", "_secrets", "identity")

    def __init__(self, root: bytes | memoryview) -> None:
        self._page = SecretPage()  # the keys; what is made of them to use one goes at once
        self._secrets = [self._page.view(number * KEY_SIZE, KEY_SIZE) for number in range(len(_PURPOSES))]
        for purpose, key in zip(_PURPOSES, self._secrets, strict=True):
            derive_into(root, _SALT, purpose, key)
        self._public = self._signing().public_key()
        self.identity = self._public.public_bytes_raw().hex()  # names the device; no secret

    @property
    def attestation_root(self) -> memoryview:
        """The secret that the keys of attestation begin with; good for as long as this object."""
        return self._secrets[2]

    def local_key(self, model_id: bytes) -> bytes:
        """Return what a vendor's model is kept with on this device, its KV above all: no vendor has it."""
        return derive_key(self._secrets[3], model_id, b"local key v1")

    def _wrapping(self) -> AESGCM:
        return AESGCM(self._secrets[0])

    def _signing(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self._secrets[1])

    def __repr__(self) -> str:
        return f"<DeviceKey {self.identity[:8]}>"

    def __reduce__(self) -> str:
        raise TypeError("a device key stays in its process")

    @classmethod
    def load_or_create(cls, path: Path) -> DeviceKey:
        """Return the key in `path`; if there is no such file, make a new key and store it there.

        Missing folders are created with mode 0700. Of several processes that create it at once,
        one wins and all load the winner's. Errors as in `load`; NormalWorldError when the disk
        does not take it.
        """
        make_folder(path.parent)
        _check_folder(path)
        sweep(path.parent)  # a writer that was killed may have left the key under a second name
        if not os.path.lexists(path):
            _create(path)
        return cls.load(path)

    @classmethod
    def load(cls, path: Path) -> DeviceKey:
        """Return the key in `path`.

        Raises CallerError when there is none (code "device_key_missing") or when others than its
        owner could have read or replaced it ("device_key_unsafe"); StoredDataError when it does
        not hold a key.
        """
        page = SecretPage()
        return cls(read_root(path, page))

    def wrap(self, model_id: bytes, key: bytes) -> bytes:
        """Return `key` encrypted for this device and bound to `model_id`: WRAPPED_SIZE bytes."""
        nonce = secrets.token_bytes(12)
        return nonce + self._wrapping().encrypt(nonce, key, model_id)

    def unwrap(self, model_id: bytes, wrapped: bytes) -> bytes:
        """Return the key that `wrap` encrypted. Raises StoredDataError if this device did not."""
        try:
            if len(wrapped) != WRAPPED_SIZE:
                raise InvalidTag
            return self._wrapping().decrypt(wrapped[:12], wrapped[12:], model_id)
        except InvalidTag:
            raise StoredDataError(
                "The model's key was wrapped by another device, for another model, or is damaged.",
                hint="Add the model again on this device.",
            ) from None

    def unlock(self, block: bytes, licence: bytes, entry: bytes) -> Unlocked:
        """Raise CallerError: a licence is for a secure world, and the device key alone is none."""
        del block, licence, entry
        raise CallerError(
            "Only a secure world opens a vendor's model.",
            hint="Use it as it is: it cannot be changed here.",
            code="vendors_model",
        )

    def sign(self, data: bytes) -> bytes:
        """Return this device's signature of `data`: SIGNATURE_SIZE bytes."""
        return self._signing().sign(data)

    def verify(self, data: bytes, signature: bytes) -> None:
        """Raise StoredDataError unless `signature` is this device's signature of `data`."""
        verify_signature(self._public, data, signature)


def read_root(path: Path, page: SecretPage) -> memoryview:
    """Return the root secret in `path`, read into `page`, as long as that lasts. Raises as DeviceKey.load."""
    _check_folder(path)
    if _read_private(path, page.view(0, KEY_SIZE + 1)) != KEY_SIZE:
        raise StoredDataError(
            f"The device key {path} does not hold {KEY_SIZE} bytes.",
            hint="Restore it from a backup: without it the models of this store cannot be opened.",
        )
    return page.view(0, KEY_SIZE)


def write_root(path: Path, root: bytes | memoryview) -> None:
    """Put a root secret into `path`, whole or not at all.

    Raises FileExistsError when there is a file, which stays; NormalWorldError when the disk does not take it.
    """
    with disk_errors(f"Creating the device key {path}"), NewFile(path) as file:
        write_all(file.fd, [memoryview(root)], 0)
        try:
            file.publish()
        except FileExistsError:
            pass
        else:
            return
    raise FileExistsError(path)


def derived_keys(root: bytes) -> list[bytes]:
    """Return what a root secret is used for: the keys that wrap, sign, and begin others."""
    return [derive_key(root, _SALT, purpose) for purpose in _PURPOSES]


def verify_signature(public: Ed25519PublicKey, data: bytes, signature: bytes) -> None:
    """Raise StoredDataError unless `signature` is one of `data` by the device with that public key."""
    try:
        public.verify(signature, data)
    except InvalidSignature:
        raise StoredDataError(
            "The signature is not this device's: the file is damaged, forged or for another device.",
            hint="Add the model again on this device.",
        ) from None


def _unsafe(path: Path, why: str, remedy: str) -> CallerError:
    return unsafe(f"The device key {path}", why, remedy, code=_UNSAFE)


def _check_folder(path: Path) -> None:
    """Raise CallerError when someone else could replace files in the folder of `path`."""
    check_folder(path.parent, f"The device key {path}", code=_UNSAFE)


def _create(path: Path) -> None:
    with contextlib.suppress(FileExistsError):  # another process was faster: its key counts
        write_root(path, secrets.token_bytes(KEY_SIZE))


def _read_private(path: Path, target: memoryview) -> int:
    """Read a file that is nobody else's into `target`; return how many bytes it had, or as many as fit."""
    try:
        # O_NONBLOCK: opening a pipe that was put in its place must not hang.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CallerError(
            f"There is no device key {path}.",
            hint="The first `flexserve add` makes it; if models exist already, restore it from a backup.",
            code="device_key_missing",
        ) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _unsafe(path, "it is a symbolic link", "Put the file itself there.") from None
        raise _unsafe(path, os.strerror(error.errno or 0), "Make it readable for its owner.") from None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise _unsafe(path, "it is not a regular file", "Name another one.")
        if info.st_uid != os.geteuid():
            raise _unsafe(path, "it belongs to another user", "Run as that user, or use a key of your own.")
        if info.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise _unsafe(path, "others may access it", f"Run `chmod 600 {path}`.")
        with disk_errors(f"Reading the device key {path}"):
            return os.readv(fd, [target])
    finally:
        os.close(fd)
