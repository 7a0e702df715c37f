"""KV in a trusted application that is reached by messages: used again, sealed, taken in, evicted."""

from __future__ import annotations

from collections.abc import Callable

from inside_world import InsideWorld
from played_application import CHUNK, KV, answer_to

from flexserve.protocol.trusted_app import Kind

MakeWorld = Callable[..., InsideWorld]


def test_the_next_turn_of_a_conversation_computes_only_what_is_new(world: InsideWorld) -> None:
    answered = world.say("a longer prompt>")
    world.say(f"a longer prompt>{answered} and more>")
    assert world.started().cached_tokens == len("a longer prompt>") + len(answered)


def test_kv_is_used_again_by_its_owner_only_and_by_nobody_who_wants_none(world: InsideWorld) -> None:
    world.say("a longer prompt>", owner="one")
    world.say("a longer prompt>", owner="two")
    assert world.started().cached_tokens == 0
    world.say("a longer prompt>", owner="one", reuse=False)
    assert world.started().cached_tokens == 0


def test_sealed_kv_is_taken_in_after_a_recall(world: InsideWorld) -> None:
    prompt = "a prompt that is longer than thirty-two tokens>"
    world.say(prompt)
    world.app.grant(world.app.sealing_size("a", 0), 0)
    world.app.seal("a", 0)
    [path] = (world.store / "kv").iterdir()
    assert b"longer" not in path.read_bytes()
    world.recall()
    world.say(prompt)
    assert world.started().cached_tokens > 32
    assert world.app.kv_status().resumed == 1


def test_damaged_kv_is_computed_anew(world: InsideWorld) -> None:
    prompt = "a prompt that is longer than thirty-two tokens>"
    world.say(prompt)
    world.app.grant(world.app.sealing_size("a", 0), 0)
    world.app.seal("a", 0)
    world.recall()
    [path] = (world.store / "kv").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert world.say(prompt) == answer_to(prompt)
    assert world.started().cached_tokens == 0
    assert world.app.kv_status().damaged == 1
    assert list((world.store / "kv").iterdir()) == []


def test_kv_that_an_earlier_process_had_sealed_is_taken_in(make_world: MakeWorld) -> None:
    prompt = "a prompt that is longer than thirty-two tokens>"
    before = make_world()
    answered = before.say(prompt, owner="one")
    before.app.grant(before.app.sealing_size("a", 0), 0)
    before.app.seal("a", 0)
    before.end()
    world = make_world()
    world.say(prompt, owner="two")
    assert world.started().cached_tokens == 0
    world.app.evict("a", Kind.KV, 1, keep=False)
    world.say(f"{prompt}{answered} and>", owner="one")
    assert world.started().cached_tokens == len(prompt) + len(answered)
    assert world.app.kv_status().resumed_tokens == len(prompt) + len(answered)


def test_kv_that_nobody_goes_on_from_is_not_tried_for_ever(make_world: MakeWorld) -> None:
    before = make_world()
    before.say("a prompt that is longer than thirty-two tokens>")
    before.app.grant(before.app.sealing_size("a", 0), 0)
    before.app.seal("a", 0)
    before.end()
    world = make_world()
    for left in (1, 1, 0):
        assert world.say("another prompt that is longer than thirty-two tokens>")
        assert len(list((world.store / "kv").iterdir())) == left
        world.app.evict("a", Kind.KV, 1, keep=False)


def test_kv_in_use_stays_and_idle_kv_goes(world: InsideWorld) -> None:
    assert world.app.idle_kv() == []
    world.say()
    [idle] = world.app.idle_kv()
    assert (idle.size, idle.tokens) == (KV * CHUNK, len("hello>") + 8)
    during: list[int] = []

    def evict() -> None:
        world.played.between_slices = lambda: None
        during.append(world.app.evict("a", Kind.KV, 1, keep=False))

    world.played.between_slices = evict
    world.say()
    assert during == [0]
    assert world.app.evict("a", Kind.KV, 1, keep=False) == KV * CHUNK
    assert world.app.idle_kv() == []
