from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from flexserve.attacks.linux import Scene
from flexserve.errors import NormalWorldError


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A secure world as it is meant to be, and one in ordinary memory on which every attack must succeed."""
    if os.geteuid() != 0:
        pytest.skip("attacks through the kernel's interfaces need root")
    try:
        setting = Scene.set(tmp_path_factory.mktemp("target"))
        with setting as scene:
            yield scene
    except NormalWorldError as error:
        pytest.skip(str(error))
