"""A sealed model for the trusted application at S-EL0, which has another key than the device."""

from __future__ import annotations

import msgspec

from flexserve.trusted.store.keys import Device, Sealer
from flexserve.trusted.store.manifest import read_block, write_block


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
