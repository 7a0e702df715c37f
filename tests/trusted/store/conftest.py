from __future__ import annotations

from pathlib import Path

import pytest
from sample_models import gguf_bytes, quiet

from flexserve.trusted.store import DeviceKey, SealedModel, Store, seal_file


@pytest.fixture
def device(tmp_path: Path) -> DeviceKey:
    return DeviceKey.load_or_create(tmp_path / "keys" / "device.key")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A GGUF of two and a bit chunks."""
    path = tmp_path / "source.gguf"
    path.write_bytes(gguf_bytes(weights=1 << 19))
    return path


@pytest.fixture
def store(tmp_path: Path, device: DeviceKey) -> Store:
    return Store(tmp_path / "store", device)


@pytest.fixture
def flex(tmp_path: Path, source: Path, device: DeviceKey) -> Path:
    path = tmp_path / "model.flex"
    seal_file(source, path, "model", device, quiet)
    return path


@pytest.fixture
def sealed(flex: Path, device: DeviceKey):
    with SealedModel.open(flex, device) as model:
        yield model
