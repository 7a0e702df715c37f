"""Weights that a disk of the guest's brings: pages come with them, so none wait granted for them."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from inside_world import InsideWorld, Unanswered
from played_application import CHUNK, KV, SCRATCH, WEIGHTS, PlayedApplication, answer_to

from flexserve.errors import GrantRefusedError
from flexserve.protocol.trusted_app import Kind
from flexserve.tee_client.link import Link
from flexserve.tee_client.messages import Ask, Reply, Status
from flexserve.testing.trustzone import eventually

WHOLE = WEIGHTS + KV + SCRATCH  # chunks of a model that computes


class PlayedDisk:
    """A disk whose guest hands over a page of its own for each chunk that it reads."""

    def __init__(self, played: PlayedApplication, link: Link) -> None:
        self._played, self._link = played, link
        self.stored: dict[str, Any] = {}
        self.image = types.SimpleNamespace(objects=self._objects, remove=self.stored.pop)
        self.read = 0  # chunks

    def _objects(self) -> Mapping[str, Any]:
        return self.stored

    def seal(self, name: str, model: int, chunks: int) -> None:
        replies = [self._link.ask(Ask.SEAL, model, chunk) for chunk in range(chunks)]
        head = b"".join(value.to_bytes(8, "little") for value in replies[0].values[:4])
        self.stored[name] = types.SimpleNamespace(head=head, pieces=[reply.payload for reply in replies])

    def load(self, stored: Any, model: int, chunks: Sequence[int]) -> Reply | None:
        played = self._played
        for chunk in chunks:
            if played.granted == played.memory:
                raise GrantRefusedError("The guest has no memory.", missing=CHUNK)
            played.granted += 1
            played.unused += 1
            self.read += 1
            reply = self._link.ask(Ask.LOAD, model, chunk, payload=stored.pieces[chunk])
            if reply.status is not Status.DONE:
                return reply
        return None


@pytest.fixture
def world(make_world: Callable[..., InsideWorld]) -> InsideWorld:
    return make_world(memory=WHOLE, disk=PlayedDisk)


def test_weights_are_sealed_to_the_disk_and_come_back_from_it(world: InsideWorld) -> None:
    assert world.say() == answer_to("hello>")
    assert list((world.store / "images").iterdir()) == []
    assert world.app.opens_at_once("a")
    assert world.disk.read == 0
    assert world.recall().returned == WHOLE * CHUNK
    assert world.played.granted == 0
    assert world.say() == answer_to("hello>")
    assert world.disk.read == WEIGHTS
    assert world.played.held == world.played.granted == WHOLE
    assert world.app.pool().resident == WHOLE * CHUNK


def test_an_idle_model_makes_way_for_pages_of_the_disk(world: InsideWorld) -> None:
    for model in ("a", "c", "a", "c"):
        assert world.say(model=model) == answer_to("hello>")
    assert world.disk.read > 0
    assert world.played.held == world.played.granted <= WHOLE


def test_ahead_of_need_only_what_is_granted_is_replaced(world: InsideWorld) -> None:
    world.app.open("a")
    world.app.evict("a", Kind.WEIGHTS, 1 << 30, keep=True)
    world.app.return_unused()
    world.app.grant(2 * CHUNK, 0)
    world.app.load("a", None)
    assert eventually(lambda: world.app.memory()[0].weights == 2 * CHUNK and not world.app.loading)
    assert world.played.granted == 2


def test_what_the_disk_damaged_fails_a_request_and_is_made_anew(world: InsideWorld) -> None:
    world.say()
    world.recall()
    [stored] = world.disk.stored.values()
    stored.pieces[2] = bytes(len(stored.pieces[2]))
    with pytest.raises(Unanswered) as refused:
        world.say()
    assert refused.value.blame == "stored_data"
    assert world.disk.stored == {}
    assert world.say() == answer_to("hello>")
    assert world.played.held == world.played.granted
