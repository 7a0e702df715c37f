"""A vendor's .flex file: made once, the same for all devices; and its first block, as anybody may read it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from flexserve.errors import CallerError
from flexserve.trusted.store.container import file_size
from flexserve.trusted.store.files import disk_errors, write_all
from flexserve.trusted.store.keys import WRAPPED_SIZE
from flexserve.trusted.store.manifest import (
    BLOCK_SIZE,
    Manifest,
    Vendor,
    check_name,
    read_vendor_block,
    write_block,
)
from flexserve.trusted.store.sealing import seal
from flexserve.trusted.store.source import FileSource
from flexserve.trusted.store.split import JoinedSource, part_names
from flexserve.vendor.keys import Content, VendorKeys

Progress = Callable[[int, int], None]  # bytes done, bytes in total
_STEP = 1 << 20  # bytes


class _VendorSealer:
    """The Sealer of a vendor: it keeps the content key itself, and names no device."""

    identity = "0" * 64

    def __init__(self, keys: VendorKeys) -> None:
        self._keys, self.key = keys, b""

    def wrap(self, model_id: bytes, key: bytes) -> bytes:
        """Keep the content key as `key`: in the file there are zeros."""
        del model_id
        self.key = key
        return bytes(WRAPPED_SIZE)

    def sign(self, data: bytes) -> bytes:
        """Return the vendor's signature."""
        return self._keys.signing.sign(data)


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """The first block of a vendor's file, whose signature is that of the key it names."""

    manifest: Manifest
    vendor: Vendor
    data: bytes

    @property
    def digest(self) -> bytes:
        """SHA-256 of the block: what licences are bound to."""
        return hashlib.sha256(self.data).digest()


def seal_content(
    source: Path, output: Path, keys: VendorKeys, *, name: str, version: int, progress: Progress
) -> Manifest:
    """Seal the GGUF `source` into the new file `output`; keep its key. `progress`: bytes done, and in all.

    Raises CallerError for what is no GGUF, and when `output` exists; NormalWorldError when the disk refuses.
    """
    check_name(name)
    if os.path.lexists(output):
        raise CallerError(f"{output} exists already.", hint="Name another file with --output.")
    sealer, unsigned = _VendorSealer(keys), output.with_name(f"{output.name}.unsigned")
    with contextlib.ExitStack() as stack:
        stack.callback(unsigned.unlink, missing_ok=True)
        parts = [stack.enter_context(FileSource(source.with_name(part))) for part in part_names(source.name)]
        joined = JoinedSource(parts) if len(parts) > 1 else parts[0]
        draft = seal(joined, unsigned, name, sealer, progress)
        stack.enter_context(disk_errors(f"Sealing {name}"))
        vendor = Vendor(keys.public, version, _sealed_digest(unsigned, lambda _done, _total: None))
        manifest = msgspec.structs.replace(draft, vendor=vendor)
        block = write_block(manifest, sealer)
        with open(unsigned, "r+b") as file:
            write_all(file.fileno(), [memoryview(block)], 0)
            os.fsync(file.fileno())
        digest = hashlib.sha256(block).digest()
        keys.keep(Content(name, version, manifest.id_bytes, digest, sealer.key))
        os.chmod(unsigned, 0o644)  # it is for everybody
        os.link(unsigned, output)
    return manifest


def read_content(path: Path) -> Block:
    """Return the first block of the file `path`; whether its vendor is to be trusted is not said by that.

    Raises CallerError for a file that cannot be read or has another size, StoredDataError for a forged one.
    """
    try:
        with path.open("rb") as file:
            data, size = file.read(BLOCK_SIZE), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise CallerError(f"{path} cannot be read: {error.strerror}.", hint="Check the path.") from None
    manifest = read_vendor_block(data)
    assert manifest.vendor is not None, "its block has one"
    if size != file_size(manifest):
        raise _altered(path, f"{file_size(manifest)} bytes", f"{size} bytes")
    return Block(manifest, manifest.vendor, data)


def check_content(path: Path, block: Block, progress: Progress) -> None:
    """Raise CallerError unless every byte of the file is what the vendor signed. It takes no key."""
    with disk_errors(f"Reading {path.name}"):
        found = _sealed_digest(path, progress)
    if found != block.vendor.sealed:
        raise _altered(path, block.vendor.sealed, found)


def _sealed_digest(path: Path, progress: Progress) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(BLOCK_SIZE)
        while data := file.read(_STEP):
            digest.update(data)
            progress(file.tell(), size)
    return digest.hexdigest()


def _altered(path: Path, expected: str, found: str) -> CallerError:
    return CallerError(
        f"{path} is damaged or was tampered with: content: expected {expected}, found {found}.",
        hint="Get the file from the vendor again.",
        code="content_damaged",
    )
