from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from flexserve.bench.shapes import SHAPES
from flexserve.bench.synth import write_synthetic
from flexserve.bench.worlds import DrivenWorld
from flexserve.errors import NormalWorldError
from flexserve.platforms.linux.secure_memory import probe_secret_memory
from flexserve.secure.models.keys import DeviceKey
from flexserve.secure.models.store import Store
from flexserve.units import MIB

_OPTIONS = ("--granule", "65536", "--context", "256", "--threads", "1")


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A store with one model, "canary", whose weights contain `canary` and keep it when they are repacked."""

    root: Path
    key: Path
    canary: bytes

    def open(self, memory: str) -> DrivenWorld:
        """Start a secure world with all of the model in memory."""
        world = DrivenWorld(self.root, self.key, arguments=(*_OPTIONS, "--memory", memory))
        world.generate("canary", "Kato bime.", 4)
        world.warm("canary")
        return world


@pytest.fixture(scope="session", autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        pytest.skip("attacks through the kernel's interfaces need root")


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    folder = tmp_path_factory.mktemp("target")
    source = folder / "source.gguf"
    write_synthetic(source, SHAPES["small-llama"], "f16")
    # Norms are kept as they are. Eight numbers near one, that no other tensor has, change no sense.
    numbers = (1 + np.random.default_rng(2026).random(8) / 16).astype(np.float32)
    norm = next(t for t in GGUFReader(source, "r+").tensors if t.name == "blk.1.attn_norm.weight")
    norm.data[:8] = numbers
    norm.data.base.flush()
    root, key = folder / "store", folder / "device.key"
    Store(root, DeviceKey.load_or_create(key)).add(source, "canary", lambda _done, _total: None)
    source.unlink()
    return Target(root, key, numbers.tobytes())


@pytest.fixture(scope="session")
def secret(target: Target) -> Iterator[DrivenWorld]:
    """A secure world as it is meant to be."""
    try:
        probe_secret_memory(256 * MIB)
    except NormalWorldError as error:
        pytest.skip(str(error))
    with target.open("secret") as world:
        yield world


@pytest.fixture(scope="session")
def plain(target: Target) -> Iterator[DrivenWorld]:
    """The same in ordinary memory: every attack must succeed on it, or it proves nothing."""
    with target.open("plain") as world:
        yield world
