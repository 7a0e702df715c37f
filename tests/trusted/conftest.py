from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fake_llama import install
from fake_world import World
from templates import renderer

if TYPE_CHECKING:
    from grammars import Reader


@pytest.fixture(scope="session", autouse=True)
def _the_helper_ends_with_the_tests() -> Iterator[None]:
    yield
    if renderer.cache_info().currsize:
        renderer().close()


@pytest.fixture
def make_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., World]]:
    """What makes trusted applications over a fake llama.cpp, with model "a" open; see World for options.

    One made later finds the store of those made before.
    """
    install(monkeypatch)
    with ExitStack() as worlds:

        def make(*args: Any, **options: Any) -> World:
            world = worlds.enter_context(World(tmp_path, *args, **options))
            world.app.open("a")
            return world

        yield make


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """One of them, with all the memory that it may want."""
    return make_world()


@pytest.fixture
def reader() -> Reader:
    """What reads grammars over the vocabulary of the tiny model."""
    from grammars import shared_reader

    return shared_reader()
