"""A model that the device sealed, for the application at S-EL0."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexserve.errors import StoredDataError
from flexserve.trusted.store.container import SealedModel
from flexserve.trusted.store.for_application import block_for
from flexserve.trusted.store.keys import DeviceKey
from flexserve.trusted.store.manifest import BLOCK_SIZE
from flexserve.trusted.store.sealing import seal_file

MODEL = Path(__file__).parents[3] / "models/tiny/flexserve-tiny.gguf"


def test_the_application_opens_what_the_device_sealed_and_the_device_no_more(tmp_path: Path):
    device, application = DeviceKey(bytes(32)), DeviceKey(bytes(range(32)))
    path = tmp_path / "tiny.flex"
    seal_file(MODEL, path, "tiny", device, lambda _done, _total: None)
    content = path.read_bytes()
    block = block_for(application, content[:BLOCK_SIZE], device)
    path.write_bytes(block + content[BLOCK_SIZE:])
    model = SealedModel.open(path, application)
    first = bytearray(64)
    model.read_into(0, memoryview(first))
    model.close()
    assert first == MODEL.read_bytes()[:64]
    with pytest.raises(StoredDataError):
        SealedModel.open(path, device)
    with pytest.raises(StoredDataError):
        block_for(application, block, device)
