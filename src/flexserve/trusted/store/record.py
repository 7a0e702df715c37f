"""What a model was found to be able to do: derived like an image, signed by the device like a manifest.

    record (JSON), signature

A record is bound to its model and to the engine that tried it. One that is absent, damaged or of
another engine says nothing: what the model can do is then told by its header alone.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from flexserve.errors import StoredDataError
from flexserve.protocol.statuses import Abilities
from flexserve.trusted.store.files import NewFile, disk_errors, write_all
from flexserve.trusted.store.keys import SIGNATURE_SIZE, Device
from flexserve.trusted.store.manifest import Manifest

MAX_RECORD = 4096  # bytes


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one engine found out about one model. `trial`: a random number, so that any two differ."""

    model_id: str
    engine: str  # Engine.identity
    trial: int
    abilities: Abilities


def read_record(path: Path, device: Device, manifest: Manifest) -> Record | None:
    """Return the record of a model at `path`; None when there is none that this device wrote."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.read(fd, MAX_RECORD)
        text = data[:-SIGNATURE_SIZE]
        device.verify(text, data[-SIGNATURE_SIZE:])
        record = msgspec.json.decode(text, type=Record)
    except (OSError, StoredDataError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    finally:
        os.close(fd)
    return record if record.model_id == manifest.model_id else None


def write_record(path: Path, device: Device, record: Record) -> None:
    """Put `record` at `path`, in place of an older one. Raises NormalWorldError when the disk refuses."""
    text = msgspec.json.encode(record)
    with disk_errors("Recording what a model can do"), NewFile(path) as file:
        write_all(file.fd, [memoryview(text + device.sign(text))], 0)
        file.publish_over()
