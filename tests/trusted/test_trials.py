"""A model's trial: what it can do is found out by doing it once, over a fake engine."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from fake_llama import FakeContext, FakeModel
from fake_world import World

from flexserve.errors import (
    InternalError,
    StoredDataError,
)
from flexserve.protocol.trusted_app import ModelMemory

Make = Callable[..., World]
ALL = 1 << 30
LONG = "a conversation that is long enough to be worth sealing>"


def memory(world: World, model: str = "a") -> ModelMemory:
    return next(it for it in world.app.memory() if it.name == model)


@pytest.mark.parametrize(("text", "vectors"), [(True, True), (True, False), (False, True)])
def test_a_trial_finds_out_what_a_model_can_do(world: World, monkeypatch, text: bool, vectors: bool) -> None:
    world.entry().possible = msgspec.structs.replace(world.entry().possible, text=True, vectors=True)
    monkeypatch.setattr(FakeModel, "text", text)
    monkeypatch.setattr(FakeModel, "vectors", vectors)
    world.app.run(world.try_it())
    found = world.entry().abilities
    assert (found.text, found.vectors, found.tools) == (text, vectors, "none")
    assert memory(world).used_kv == 0
    assert memory(world).idle_kv == 0


def test_a_model_that_ranks_is_tried_with_a_rank(world: World, monkeypatch) -> None:
    possible = world.entry().possible
    world.entry().possible = msgspec.structs.replace(possible, text=False, vectors=False, ranks=True)
    monkeypatch.setattr(FakeModel, "ranks", True)
    world.app.run(world.try_it())
    found = world.entry().abilities
    assert (found.text, found.vectors, found.ranks) == (False, False, True)


def test_a_model_that_can_do_neither_is_unusable_and_recorded_as_that(world: World, monkeypatch) -> None:
    monkeypatch.setattr(FakeModel, "text", False)
    monkeypatch.setattr(FakeModel, "vectors", False)
    with pytest.raises(StoredDataError) as caught:
        world.app.run(world.try_it())
    assert caught.value.code == "model_unusable"
    (stored, _) = world.app.stored()
    assert stored.abilities is not None
    assert not stored.abilities.text


def test_what_a_model_cannot_do_by_its_header_is_not_tried(world: World) -> None:
    possible = world.entry().possible
    world.entry().possible = msgspec.structs.replace(possible, vectors=False)
    world.app.run(world.try_it())
    assert not world.entry().abilities.vectors


def test_a_model_whose_vectors_fail_keeps_its_texts(world: World) -> None:
    def inside(context: FakeContext) -> None:
        if type(context) is not FakeContext:
            raise InternalError("It does not work.")

    world.engine.inside = inside
    world.app.run(world.try_it())
    assert (world.entry().abilities.text, world.entry().abilities.vectors) == (True, False)


def test_a_template_that_does_not_work_teaches_no_tools(world: World, monkeypatch) -> None:
    class Bad:
        @property
        def tools(self) -> str:
            raise StoredDataError("It is wrong.", hint="Mend it.")

    world.entry().template = Bad()
    world.app.run(world.try_it())
    assert world.entry().abilities.tools == "none"
