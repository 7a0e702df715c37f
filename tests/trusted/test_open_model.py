"""What is asked for before a model opens, and what is left when it does not."""

import types
from collections.abc import Callable
from typing import Any

import pytest
from fake_world import World

from flexserve.errors import CallerError, GrantRefusedError, InternalError
from flexserve.trusted import open_model
from flexserve.trusted.open_model import require_room


def manifest(name: str, size: int) -> Any:
    return types.SimpleNamespace(name=name, size=size)


def test_a_model_larger_than_the_machines_memory_is_the_callers_mistake() -> None:
    with pytest.raises(CallerError) as caught:
        require_room(manifest("huge", 1 << 50))
    assert caught.value.code == "model_too_large"
    assert "huge needs 1048576 GiB" in caught.value.message
    assert "smaller model" in caught.value.hint


def test_a_model_that_fits_the_machine_is_let_in() -> None:
    require_room(manifest("small", 1 << 20))


def test_where_the_heap_is_in_granted_memory_opening_asks_for_it_and_gives_it_to_the_heap(
    make_world: Callable[..., World],
) -> None:
    world = make_world(shares_heap=True)
    heap = world.app.memory()[0].heap
    assert heap > 4096
    assert world.app.pool().granted == 0
    assert world.budget.granted == 0


def test_a_model_whose_heap_is_refused_is_not_opened(make_world: Callable[..., World]) -> None:
    world = make_world(shares_heap=True)
    world.budget.limit = 0
    with pytest.raises(GrantRefusedError, match="Opening b takes") as caught:
        world.app.open("b")
    assert caught.value.missing >= world.app.memory()[0].heap
    assert [memory.name for memory in world.app.memory()] == ["a"]


def test_a_model_that_cannot_be_opened_leaves_nothing_behind(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    class Broken:
        def __init__(self, *_args: object, **_options: object) -> None:
            raise InternalError("There is no context.")

    monkeypatch.setattr(open_model, "Context", Broken)
    monkeypatch.setattr(vars(open_model)["Model"], "close", lambda model: closed.append(model.name))
    with pytest.raises(InternalError):
        world.app.open("b")
    assert closed == ["b"]
    assert [memory.name for memory in world.app.memory()] == ["a"]
