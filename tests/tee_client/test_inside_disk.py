"""Weights that a disk of the guest's brings: pages come with them, so none wait granted for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from inside_world import InsideWorld, Unanswered
from played_application import CHUNK, KV, SCRATCH, WEIGHTS, answer_to
from played_disk import SLOTS, PlayedDisk

from flexserve.platforms.trustzone.disk_image import SLOT, TAG, StoredObject
from flexserve.protocol.trusted_app import Kind
from flexserve.tee_client.messages import Ask
from flexserve.testing.trustzone import eventually

PROMPT = "a prompt that is longer than thirty-two tokens>"
WHOLE = WEIGHTS + KV + SCRATCH  # chunks of a model that computes


def objects(world: InsideWorld, kind: str) -> list[StoredObject]:
    """Return what the disk has of a kind."""
    return [each for each in world.disk.image.objects().values() if each.name.startswith(f"{kind}/")]


def sealed(world: InsideWorld) -> str:
    """Have a conversation, and its KV sealed; return the answer."""
    answered = world.say(PROMPT, owner="one")
    world.app.grant(world.app.sealing_size("a", 0), 0)
    world.app.seal("a", 0)
    return answered


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


def test_nothing_is_granted_for_weights_that_bring_pages_and_nothing_goes_back_for_them(
    world: InsideWorld,
) -> None:
    world.say()
    world.recall()
    granted, grant = list[int](), world.played._without_model

    def watched(kind: Ask, arguments: Any, payload: bytes = b"") -> Any:
        granted.extend(arguments[:1] if kind is Ask.GRANT else ())
        return grant(kind, arguments, payload)

    world.played._without_model = watched  # type: ignore[method-assign]
    world.played.asked.clear()
    assert world.say() == answer_to("hello>")
    assert sum(granted) == KV + SCRATCH
    assert Ask.GIVE_BACK not in world.played.asked


def test_what_goes_back_for_a_chunk_and_is_taken_by_another_one_is_followed_by_more(
    world: InsideWorld,
) -> None:
    world.say()
    world.app.evict("a", Kind.WEIGHTS, 1 << 30, keep=True)
    assert world.disk.room() == 0
    world.disk.refusals = {0: 2}
    world.played.asked.clear()
    world.warm()
    assert world.disk.read == WEIGHTS
    assert world.played.asked.count(Ask.GIVE_BACK) >= 2
    assert Ask.EVICT not in world.played.asked  # nothing had to make way
    assert world.played.held == world.played.granted


def test_for_an_os_that_lacks_memory_itself_more_makes_way_than_a_model_needs(
    make_world: Callable[..., InsideWorld],
) -> None:
    world = make_world(memory=2 * WHOLE, disk=PlayedDisk)
    for model in ("c", "a"):
        world.say(model=model)
    for kind, chunks in ((Kind.SCRATCH, SCRATCH), (Kind.KV, KV), (Kind.WEIGHTS, 2)):
        assert world.app.evict("c", kind, chunks * CHUNK, keep=False) == chunks * CHUNK
    world.app.return_unused()
    world.played.memory = world.played.granted - 1
    world.played.asked.clear()
    assert world.say(model="c") == answer_to("hello>")
    assert Ask.LEAVE not in world.played.asked  # nothing that it needed was refused
    assert world.played.held == world.played.granted == world.played.memory


def test_an_idle_model_makes_way_for_pages_of_the_disk(world: InsideWorld) -> None:
    for model in ("a", "c", "a", "c"):
        assert world.say(model=model) == answer_to("hello>")
    assert world.disk.read > 0
    assert world.played.held == world.played.granted <= WHOLE


def test_ahead_of_need_weights_come_as_far_as_the_guest_has_memory_to_spare(world: InsideWorld) -> None:
    world.app.open("a")
    world.app.evict("a", Kind.WEIGHTS, 1 << 30, keep=False)
    world.app.return_unused()
    world.played.memory = world.played.granted + 2
    world.app.load("a", None)
    assert eventually(lambda: world.app.memory()[0].weights == 2 * CHUNK and not world.app.loading)
    world.played.memory += 1 << 20
    world.app.load("a", None)
    assert eventually(lambda: world.app.memory()[0].whole and not world.app.loading)


def test_ahead_of_need_what_is_granted_is_used_first(world: InsideWorld) -> None:
    world.app.open("a")
    world.app.evict("a", Kind.WEIGHTS, 1 << 30, keep=True)
    world.app.return_unused()
    world.app.grant(2 * CHUNK, 0)
    world.played.memory = world.played.granted
    world.app.load("a", None)
    assert eventually(lambda: world.app.memory()[0].weights == 2 * CHUNK and not world.app.loading)
    assert world.played.granted == 2


def test_what_the_disk_damaged_fails_a_request_and_is_made_anew(world: InsideWorld) -> None:
    world.say()
    world.recall()
    [stored] = objects(world, "weights")
    world.disk.blocks.data[stored.pieces[2].slot * SLOT] ^= 1
    with pytest.raises(Unanswered) as refused:
        world.say()
    assert refused.value.blame == "stored_data"
    assert objects(world, "weights") == []
    assert world.say() == answer_to("hello>")
    assert world.played.held == world.played.granted


def test_a_full_disk_fails_the_request_that_has_its_image_made(
    make_world: Callable[..., InsideWorld],
) -> None:
    world = make_world(disk=PlayedDisk)
    world.disk.image.put("weights/other", b"", ((b"x", bytes(TAG)) for _ in range(SLOTS - WEIGHTS - 1)))
    with pytest.raises(Unanswered) as refused:
        world.say()
    assert refused.value.code == "disk_full"
    world.disk.image.remove("weights/other")
    assert world.say() == answer_to("hello>")


def test_sealed_kv_is_taken_in_from_the_disk_after_a_recall(make_world: Callable[..., InsideWorld]) -> None:
    world = make_world(disk=PlayedDisk)
    sealed(world)
    assert b"longer" not in world.disk.blocks.data
    assert list((world.store / "kv").iterdir()) == []
    world.recall()
    world.say(PROMPT, owner="one")
    assert world.started().cached_tokens > 32
    assert world.app.kv_status().resumed == 1


def test_kv_that_is_damaged_on_the_disk_is_computed_anew(make_world: Callable[..., InsideWorld]) -> None:
    world = make_world(disk=PlayedDisk)
    sealed(world)
    world.recall()
    world.played.damaged_kv = True
    assert world.say(PROMPT, owner="one") == answer_to(PROMPT)
    assert world.started().cached_tokens == 0
    assert world.app.kv_status().damaged == 1
    assert objects(world, "kv") == []


def test_kv_that_an_earlier_process_had_sealed_is_on_the_disk(make_world: Callable[..., InsideWorld]) -> None:
    before = make_world(disk=PlayedDisk)
    answered = sealed(before)
    before.end()
    world = make_world(disk=functools.partial(PlayedDisk, blocks=before.disk.blocks))
    assert world.app.opens_at_once("a")
    world.say(f"{PROMPT}{answered} and>", owner="one")
    assert world.started().cached_tokens == len(PROMPT) + len(answered)


def test_what_does_not_fit_on_the_disk_is_not_sealed_and_nothing_fails(
    make_world: Callable[..., InsideWorld],
) -> None:
    world = make_world(disk=PlayedDisk)
    world.say()
    free = world.disk.image.free() // SLOT
    world.disk.image.put("weights/other", b"", ((b"x", bytes(TAG)) for _ in range(free - 1)))
    assert sealed(world) == answer_to(PROMPT)
    assert objects(world, "kv") == []
    assert world.say(PROMPT) == answer_to(PROMPT)
