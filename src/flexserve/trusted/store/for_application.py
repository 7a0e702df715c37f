"""Sealed models for the trusted application at S-EL0, which has another key than the device.

Only the first block of a file depends on the key. That for the application lies in ROOT/images.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from flexserve.errors import FlexServeError
from flexserve.trusted.store.derived import block_name
from flexserve.trusted.store.files import NewFile, disk_errors, write_all
from flexserve.trusted.store.keys import Device, Sealer
from flexserve.trusted.store.manifest import BLOCK_SIZE, read_block, read_label, write_block
from flexserve.trusted.store.store import Store


def block_for(application: Sealer, block: bytes, device: Device) -> bytes:
    """Return the first block of a file of `device` as `application` wants it; the rest of the file stays.

    Raises StoredDataError for a block that is damaged, or another device's. The content key is in this
    process's memory for a moment.
    """
    manifest = read_block(block, device)
    key = device.unwrap(manifest.id_bytes, bytes.fromhex(manifest.wrapped_key))
    wrapped = application.wrap(manifest.id_bytes, key).hex()
    own = msgspec.structs.replace(manifest, device=application.identity, wrapped_key=wrapped)
    return write_block(own, application)


def write_blocks(root: Path, application: Sealer, device: Device) -> int:
    """Write the blocks that `application` has not, of all models of the store in `root`; return how many.

    A model whose file is damaged, or that is not this device's own, gets none. Raises NormalWorldError.
    """
    models, images, _ = Store.make_folders(root)
    with disk_errors(f"Listing {models}"):
        paths = sorted(models.glob("*.flex"))
    written = 0
    for path in paths:
        with contextlib.suppress(FlexServeError):
            with disk_errors(f"Reading {path.name}"), path.open("rb") as file:
                block = file.read(BLOCK_SIZE)
            place = images / block_name(read_label(block).model_id)
            if _is_for(application, place):
                continue
            own = block_for(application, block, device)
            with disk_errors(f"Writing {place.name}"), NewFile(place) as new:
                write_all(new.fd, [memoryview(own)], 0)
                new.publish_over(durable=False)  # it can be made again
            written += 1
    return written


def _is_for(application: Sealer, place: Path) -> bool:
    try:
        return read_label(place.read_bytes()).device == application.identity
    except (OSError, FlexServeError):
        return False
