from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conversations import CONVERSATIONS, MODEL, answer
from library import Library

from flexserve.harness.worlds import DrivenWorld


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


@pytest.fixture(scope="session")
def tiny(library: Library) -> str:
    """The name of the tiny model that the repository has."""
    return library.add(MODEL, "tiny")


@pytest.fixture(scope="session")
def expected(library: Library, tiny: str) -> list[str]:
    """What the CPU alone answers in the conversations."""
    with library.open() as world:
        return [answer(world, tiny, conversation)[0] for conversation in CONVERSATIONS]
