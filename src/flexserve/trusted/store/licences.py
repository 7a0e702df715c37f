"""What a vendor's model is opened by: its licence, judged by an entry of this device's ledger.

    ROOT/models/NAME.ledger        which vendor's key NAME is trusted of, and the newest that was seen of it
    ROOT/models/MODEL_ID.licence   the licence (flexserve.attestation.licence)

An entry is signed by the device, and only ever rises: an older version of the model, or an older licence, is
refused by it. Who puts back an older entry together with the files of its time is refused for as long as the
key's holder that saw the newer ones lives, and not afterwards: no counter of this device cannot be put back.

The time is the latest that anybody proved: the host's clock, the moment at which the vendor issued the
licence, and the time at which the model was last opened by it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec import Meta

from flexserve.attestation.cose import MalformedError
from flexserve.attestation.licence import MAX_SIZE, Licence, read_licence
from flexserve.errors import CallerError, StoredDataError
from flexserve.trusted.store.files import PRIVATE_FILE, NewFile, disk_errors, give_to_owner_of, write_all
from flexserve.trusted.store.keys import SIGNATURE_SIZE, Device, Unlocked
from flexserve.trusted.store.manifest import Manifest, Name, Size, Vendor, read_block

LEDGER, LICENCE = ".ledger", ".licence"
MAX_ENTRY = 1024  # bytes
_OFTEN = 60  # seconds: the time at which a model was opened is kept as exactly
_AGAIN = "Ask the vendor for a licence, and run `flexserve add FILE.flex --license` again."

_one_thread = threading.Lock()


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="ledger"):
    """What this device knows of a vendor's model: the newest version, licence and time."""

    name: Name
    vendor: Annotated[str, Meta(max_length=64)]  # public key, hex
    version: Size = 0
    issued: Size = 0  # milliseconds since 1970, of the newest licence
    seen: Size = 0  # seconds since 1970


def write_entry(entry: Entry, device: Device) -> bytes:
    """Return `entry`, signed by the device."""
    text = msgspec.json.encode(entry)
    return text + device.sign(text)


def read_entry(data: bytes, name: str, device: Device) -> Entry:
    """Return the entry of the model `name`. Raises StoredDataError unless the device signed it."""
    with contextlib.suppress(StoredDataError, msgspec.MsgspecError, UnicodeDecodeError):
        device.verify(data[:-SIGNATURE_SIZE], data[-SIGNATURE_SIZE:])
        entry = msgspec.json.decode(data[:-SIGNATURE_SIZE], type=Entry)
        if entry.name == name:
            return entry
    raise StoredDataError(
        f"The ledger has no sound entry of {name}: no vendor's key is trusted for it.",
        hint=f"Remove it with `flexserve rm {name}`, and add it again with --vendor.",
        code="unknown_vendor",
    )


def require_vendor(manifest: Manifest, entry: Entry) -> Vendor:
    """Return who sealed the model. Raises StoredDataError for another vendor than that of `entry`."""
    vendor = manifest.vendor
    if vendor is None or vendor.key != entry.vendor:
        raise StoredDataError(
            f"{manifest.name} is signed by another vendor: expected {entry.vendor}, "
            f"found {vendor.key if vendor else 'none'}.",
            hint="Use it only if you trust that key; then add it again with --vendor.",
            code="unknown_vendor",
        )
    if vendor.version < entry.version:
        raise rolled_back(f"version {vendor.version} of {manifest.name}", f"version {entry.version}")
    return vendor


def rolled_back(found: str, known: str) -> StoredDataError:
    """Return the error that says that something older than what is known came."""
    return StoredDataError(
        f"Rolled back: {found} was opened after {known}.",
        hint="Put the newer file back, or get it from the vendor.",
        code="licence_rolled_back",
    )


class Licences:
    """Judges licences for one device. It remembers the highest entries as long as it lives.

    `clock`: seconds since 1970.
    """

    def __init__(self, device: Device, clock: Callable[[], int]) -> None:
        self._device, self._clock = device, clock
        self._highest: dict[str, Entry] = {}

    def judge(self, block: bytes, signed: bytes, data: bytes, key: bytes) -> tuple[Licence, bytes]:
        """Return the licence of the model whose first block is `block`, and the ledger's next entry.

        `data`: its present entry. `key`: SHA-256 of the key that licences are sealed to here. Raises
        StoredDataError for what is forged, damaged, another's or older than what was seen, CallerError
        (code "licence_expired") after its end.
        """
        manifest = read_block(block, self._device)
        entry = read_entry(data, manifest.name, self._device)
        known = self._highest.get(manifest.name)
        if known is not None and known.vendor == entry.vendor:
            entry = max(entry, known, key=lambda it: (it.version, it.issued, it.seen))
        vendor = require_vendor(manifest, entry)
        licence = read_terms(signed, vendor)
        require_same(licence, manifest, hashlib.sha256(block).digest())
        require_device(licence, key)
        if licence.issued < entry.issued:
            raise rolled_back(f"the licence issued at {licence.issued}", f"the one issued at {entry.issued}")
        # A newer licence heals a clock that was wrong; it says itself that it is not earlier.
        seen = entry.seen if licence.issued == entry.issued else 0
        moment = max(self._clock(), licence.issued // 1000, seen)
        require_time(licence, moment)
        if moment < seen + _OFTEN:
            moment = seen
        entry = Entry(manifest.name, vendor.key, vendor.version, licence.issued, moment)
        self._highest[manifest.name] = entry
        return licence, write_entry(entry, self._device)


def read_terms(signed: bytes, vendor: Vendor) -> Licence:
    """Return what a licence says. Raises StoredDataError unless `vendor` signed it."""
    try:
        return read_licence(signed, Ed25519PublicKey.from_public_bytes(bytes.fromhex(vendor.key)))
    except (MalformedError, ValueError) as error:
        raise StoredDataError(
            f"The licence is not the vendor's: {error}.", hint=_AGAIN, code="licence_forged"
        ) from None


def require_same(licence: Licence, manifest: Manifest, content: bytes) -> None:
    """Raise StoredDataError unless `licence` is for this file, by its name, version and SHA-256."""
    vendor = manifest.vendor
    said = (licence.name, licence.version, licence.model.hex(), licence.content.hex())
    found = (manifest.name, vendor.version if vendor else 0, manifest.model_id, content.hex())
    for field, expected, it in zip(("name", "version", "model", "content"), said, found, strict=True):
        if expected != it:
            raise StoredDataError(
                f"The licence is for another model: {field}: expected {expected}, found {it}.",
                hint=_AGAIN,
                code="licence_other_model",
            )


def require_device(licence: Licence, key: bytes) -> None:
    """Raise StoredDataError unless the licence is sealed to the key whose SHA-256 is `key`."""
    if licence.device != key:
        raise StoredDataError(
            f"The licence of {licence.name} is for another device, or for another version of this one's "
            f"software: device: expected {licence.device.hex()}, found {key.hex()}.",
            hint=_AGAIN,
            code="licence_other_device",
        )


def require_time(licence: Licence, moment: int) -> None:
    """Raise CallerError when the licence has ended at `moment` (seconds since 1970)."""
    if moment >= licence.expires:
        raise CallerError(
            f"The licence of {licence.name} has expired: expected a time before {_utc(licence.expires)}, "
            f"found {_utc(moment)}.",
            hint=_AGAIN,
            code="licence_expired",
        )


def _utc(moment: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))


def require_use(licence: Licence, use: str) -> None:
    """Raise CallerError when the licence does not allow `use`."""
    if use not in licence.uses:
        raise CallerError(
            f"The licence of {licence.name} does not allow it: use: expected one of "
            f"{', '.join(licence.uses) or 'none'}, found {use}.",
            hint="Ask the vendor for a licence that does.",
            code="licence_use",
        )


# ---- files ---------------------------------------------------------------------------------------


def ledger_path(model: Path) -> Path:
    """Return where the entry of the model in the file `model` lies."""
    return model.with_suffix(LEDGER)


def licence_path(model: Path, manifest: Manifest) -> Path:
    """Return where the licence of the model in the file `model` lies."""
    return model.with_name(manifest.model_id + LICENCE)


def require_known(model: Path, manifest: Manifest, device: Device) -> None:
    """Raise StoredDataError unless the ledger trusts the vendor of the model, and has seen no newer one."""
    if manifest.vendor is not None:
        require_vendor(manifest, read_entry(read(ledger_path(model)), manifest.name, device))


def terms(model: Path, manifest: Manifest) -> Licence | None:
    """Return the licence of a vendor's model, signed by the vendor; None: this device sealed it.

    Nobody judged whether it is good here, or the newest. Raises CallerError (code "licence_missing") when
    there is none, StoredDataError when it is forged.
    """
    if manifest.vendor is None:
        return None
    return read_terms(_licence_of(model, manifest), manifest.vendor)


def unlock(
    model: Path, block: bytes, manifest: Manifest, vendor: Vendor, device: Device
) -> tuple[Unlocked, Licence]:
    """Return what opens a vendor's model, and the licence; the ledger's entry rises.

    Raises as Licences.judge.
    """
    path = ledger_path(model)
    with alone(path):
        entry = read(path)
        signed = _licence_of(model, manifest)
        unlocked = device.unlock(block, signed, entry)
        if unlocked.entry != entry:
            put(path, unlocked.entry)
    return unlocked, read_terms(signed, vendor)


def put(path: Path, data: bytes) -> None:
    """Put `data` at `path`, in place of what is there. Raises NormalWorldError when the disk refuses."""
    with disk_errors(f"Writing {path.name}"), NewFile(path) as file:
        write_all(file.fd, [memoryview(data)], 0)
        file.publish_over()


def _licence_of(model: Path, manifest: Manifest) -> bytes:
    if data := read(licence_path(model, manifest), MAX_SIZE):
        return data
    raise CallerError(f"{manifest.name} has no licence here.", hint=_AGAIN, code="licence_missing")


def read(path: Path, most: int = MAX_ENTRY) -> bytes:
    """Return what a small file has; nothing: there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        with disk_errors(f"Reading {path.name}"):
            return os.read(fd, most + 1)
    finally:
        os.close(fd)


@contextlib.contextmanager
def alone(ledger: Path) -> Iterator[None]:
    """Let nobody else change the entry inside the block: two who raise it at once would lower it."""
    lock, flags = ledger.with_name("ledger.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with _one_thread, disk_errors(f"Locking {ledger.name}"):
        fd = os.open(lock, flags, PRIVATE_FILE)
        try:
            give_to_owner_of(lock.parent, fd)
            os.lockf(fd, os.F_LOCK, 0)
            yield
        finally:
            os.close(fd)
