from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from library import Library

from flexserve.bench.worlds import DrivenWorld


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="session")
def world(library: Library) -> Iterator[DrivenWorld]:
    """One secure world for all tests that leave it as they found it."""
    with library.open() as world:
        yield world


@pytest.fixture
def own_library(tmp_path: Path) -> Library:
    """A library that a test may damage."""
    return Library(tmp_path)
