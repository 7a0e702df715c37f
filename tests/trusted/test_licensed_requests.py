"""What a licence does not allow, or no longer, is refused before anything is computed."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from fake_world import World

from flexserve.attestation.licence import Licence
from flexserve.errors import CallerError

NOW = int(time.time())


def licence(*uses: str, expires: int = NOW + 3600) -> Licence:
    return Licence(bytes(16), "a", 1, bytes(32), bytes(32), bytes(32), NOW * 1000, expires, uses)


@pytest.fixture
def world(make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> World:
    """A world whose model "a" has the licence that a test puts into `terms`; "b" has none."""
    made = make_world()
    monkeypatch.setattr(made.store, "terms", lambda name: terms[0] if name == "a" else None)
    terms[0] = licence("text", "vectors")
    return made


terms = [licence()]


def refused(world: World, request: int) -> str:
    with pytest.raises(CallerError) as error:
        world.app.require(request)
    return error.value.code


def test_each_use_is_allowed_by_name(world: World):
    terms[0] = licence("text")
    world.app.require(world.generate())
    assert refused(world, world.embed("text")) == "licence_use"
    terms[0] = licence("vectors")
    world.app.require(world.embed("text"))
    assert refused(world, world.generate()) == "licence_use"
    terms[0] = licence()
    assert refused(world, world.generate()) == "licence_use"
    world.app.require(world.generate(model="b"))


def test_a_licence_that_ended_allows_nothing_of_a_model_that_is_open(world: World):
    world.app.require(world.generate())
    terms[0] = licence("text", expires=NOW - 1)
    for request in (world.generate(), world.warm()):
        assert refused(world, request) == "licence_expired"


@pytest.mark.parametrize("bad", [licence("text", expires=NOW - 1), licence("vectors")])
def test_a_draft_guesses_for_no_request_that_begins_when_its_licence_does_not_allow_it(
    world: World, bad: Licence
):
    terms[0] = licence("text")
    world.app.open("b")
    first, second = world.generate(model="b"), world.generate(model="b")
    for request in (first, second):
        world.begin(request)
        while world.app.step("b", [request], 8)[0].pending != 1:
            pass
    assert world.app.guess(first, "a", 3)
    terms[0] = bad
    assert world.app.guess(first, "a", 3), "as the model's own, it is judged when a request begins"
    with pytest.raises(CallerError, match="licence of a"):
        world.app.guess(second, "a", 3)
