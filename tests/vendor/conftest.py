from __future__ import annotations

import random
from pathlib import Path

import gguf
import numpy as np
import pytest
from vendors import NOW, Vendor

from flexserve.testing.licensed_device import LicensedDevice


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF of two and a bit chunks."""
    path = tmp_path_factory.mktemp("source") / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    numbers = np.frombuffer(random.Random(1).randbytes(4 << 19), np.float32)
    writer.add_tensor("token_embd.weight", np.nan_to_num(numbers).reshape(-1, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def vendor(tmp_path: Path, source: Path) -> Vendor:
    return Vendor(tmp_path / "vendor", source)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def device(tmp_path: Path, clock: Clock) -> LicensedDevice:
    return LicensedDevice(tmp_path / "one", clock=clock)


@pytest.fixture
def other(tmp_path: Path, clock: Clock) -> LicensedDevice:
    return LicensedDevice(tmp_path / "two", clock=clock)
