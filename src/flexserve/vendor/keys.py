"""A vendor's folder of keys: what signs, and the content key of each model that was sealed.

KEYS/vendor.key          the seed of the signing key (Ed25519), private
KEYS/vendor.pub          the public key, as hex: what devices are told to trust
KEYS/contents/ID.json    a content: its key, private, and what it is the key of
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from flexserve.errors import CallerError
from flexserve.private_files import check_file
from flexserve.trusted.store.files import NewFile, disk_errors, make_folder, write_all

_SEED = 32  # bytes
_MOST = 4096  # bytes of a file here
_UNSAFE = "vendor_key_unsafe"
_Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]


class Content(msgspec.Struct, frozen=True):
    """A model that was sealed. `content`: SHA-256 of the first block of its .flex file."""

    name: str
    version: int
    model: Annotated[bytes, Meta(min_length=16, max_length=16)]
    content: _Digest
    key: _Digest

    def __repr__(self) -> str:
        return f"<Content {self.name} {self.version}>"


class VendorKeys:
    """The keys in a folder. Never printed."""

    def __init__(self, folder: Path) -> None:
        """Read the signing key. Raises CallerError when there is none, or others could have read it."""
        self.folder = folder
        seed = _read(folder / "vendor.key", "The vendor's key")
        if len(seed) != _SEED:
            raise CallerError(f"{folder / 'vendor.key'} holds no key.", hint="Restore it from a backup.")
        self.signing = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self.signing.public_key().public_bytes_raw().hex()

    @classmethod
    def make(cls, folder: Path) -> VendorKeys:
        """Make a new key in `folder`, which is made, too. Raises CallerError when it has one."""
        make_folder(folder / "contents")
        try:
            _put(folder / "vendor.key", secrets.token_bytes(_SEED))
        except FileExistsError:
            raise CallerError(
                f"{folder} has a vendor's key already.", hint="Name another folder, or use that key."
            ) from None
        keys = cls(folder)
        with disk_errors("Writing the public key"), NewFile(folder / "vendor.pub") as file:
            write_all(file.fd, [memoryview(f"{keys.public}\n".encode())], 0)
            os.fchmod(file.fd, 0o644)
            file.publish_over()
        return keys

    def keep(self, content: Content) -> None:
        """Keep the key of a content. Raises NormalWorldError when the disk refuses."""
        _put(self._path(content.model), msgspec.json.encode(content))

    def content(self, model: bytes) -> Content:
        """Return the content of that id. Raises CallerError when it is not of this vendor."""
        path = self._path(model)
        if not path.exists():
            raise CallerError(
                f"There is no key of model {model.hex()} in {self.folder}.",
                hint="Seal it with `flexserve vendor seal`, or name the folder that it was sealed with.",
                code="unknown_content",
            )
        try:
            return msgspec.json.decode(_read(path, "A content key"), type=Content)
        except msgspec.MsgspecError:
            raise CallerError(f"{path} holds no content key.", hint="Restore it from a backup.") from None

    def contents(self) -> dict[bytes, Content]:
        """Return all contents, by the SHA-256 of their first block."""
        with disk_errors(f"Listing {self.folder}"):
            ids = [bytes.fromhex(path.stem) for path in sorted((self.folder / "contents").glob("*.json"))]
        return {it.content: it for it in map(self.content, ids)}

    def _path(self, model: bytes) -> Path:
        return self.folder / "contents" / f"{model.hex()}.json"


def parse_public(text: str) -> str:
    """Return the public key that `text` says, or that is in the file of that name. Raises CallerError."""
    for word in (text, _first_of(text)):  # a file's name may be as long as a key
        with contextlib.suppress(ValueError):
            if len(bytes.fromhex(word)) == _SEED:
                return word.lower()
    raise CallerError(
        f"{text[:64]!r} is no vendor's key.", hint="Give its 64 hexadecimal digits, or its file vendor.pub."
    )


def _first_of(path: str) -> str:
    """Return the first words of a file; nothing where there is none, or no text in it."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read(_MOST).strip()
    except (OSError, ValueError):
        return ""


def _put(path: Path, data: bytes) -> None:
    """Write a new file of mode 0600. Raises FileExistsError, NormalWorldError."""
    with NewFile(path) as file:
        write_all(file.fd, [memoryview(data)], 0)
        file.publish()


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            check_file(path, os.fstat(file.fileno()), f"{what} {path}", secret=True, code=_UNSAFE)
            return file.read(_MOST)
    except OSError as error:
        raise CallerError(
            f"{what} {path} cannot be read: {error.strerror}.",
            hint="Make one with `flexserve vendor keygen`, or name its folder.",
        ) from None
