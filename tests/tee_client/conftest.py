from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from inside_world import InsideWorld

from flexserve.trusted.sidecar import start_helper
from flexserve.trusted.store import DeviceKey, Store
from flexserve.trusted.text.rendering.renderer import Renderer


@pytest.fixture(scope="session")
def renderer() -> Iterator[Renderer]:
    """The helper of this run that renders templates."""
    made = Renderer(start_helper())
    made.wait_until_ready()
    yield made
    made.close()


@pytest.fixture(scope="session")
def sealed_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the sealed models "a" and "c"."""
    folder = tmp_path_factory.mktemp("sealed")
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    store = Store(folder / "store", DeviceKey(bytes(range(32))))
    for name in ("a", "c"):
        store.add(path, name, lambda _done, _total: None)
    return folder / "store"


@pytest.fixture
def store(sealed_store: Path, tmp_path: Path) -> Path:
    """A copy of it that is the test's own."""
    return shutil.copytree(sealed_store, tmp_path / "store")


@pytest.fixture
def make_world(store: Path, renderer: Renderer) -> Iterator[Callable[..., InsideWorld]]:
    """What makes worlds over that store; see InsideWorld for options."""
    made: list[InsideWorld] = []

    def make(**options: Any) -> InsideWorld:
        made.append(InsideWorld(store, renderer, **options))
        return made[-1]

    yield make
    for world in made:
        world.end()


@pytest.fixture
def world(make_world: Callable[..., InsideWorld]) -> Iterator[InsideWorld]:
    """One of them, with all the memory that it may want; in the end, that is conserved."""
    made = make_world()
    yield made
    assert made.played.held == made.played.granted
