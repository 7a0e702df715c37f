"""Sealed KV: what goes to disk between two requests, who finds it there, and what it may take."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from conversing import FIRST, SECOND, Make, conversations, files, seal, sealed_kv
from fake_engine import CHUNK
from fake_llama import answer_to
from fake_world import World

from flexserve.errors import NormalWorldError
from flexserve.trusted.kv.sealed import WORTHWHILE


def test_what_is_sealed_is_not_sealed_again_until_it_grew(world: World) -> None:
    world.say(FIRST)
    world.app.seal("a", 0)
    world.app.seal("a", 0)
    assert world.counters.sealed == 1
    world.say(FIRST + world.text() + "on>")
    assert [it.sequence for it in world.unsealed()] == [0]
    world.app.seal("a", 0)
    assert world.counters.sealed == 2
    assert len(files(world)) == 1  # the longer one has all of the shorter one's tokens


def test_nothing_is_sealed_of_a_slot_without_tokens(world: World) -> None:
    conversations(world).seal_idle(conversations(world).slot(1))
    assert world.counters.sealed == 0


def test_no_plaintext_of_a_conversation_is_on_the_disk(world: World) -> None:
    seal(world)
    data = b"".join(path.read_bytes() for path in files(world))
    assert b"conversations" not in data
    assert b"+" * 16 not in data  # as the fake's KV has it


def test_sealed_kv_is_found_by_another_process(make_world: Make) -> None:
    text = seal(make_world())
    later = make_world()
    assert later.say(text + "on>").usage.cached_tokens == len(text)
    assert later.text() == answer_to(text + "on>")


def test_sealed_kv_is_its_owners_alone(world: World) -> None:
    text = seal(world, owner="first")
    assert world.say(text + "on>", owner="second").usage.cached_tokens == 0
    assert world.say(text + "on>", owner="first").usage.cached_tokens == len(text)


def test_what_saves_few_tokens_is_not_taken_in(world: World) -> None:
    text = seal(world)
    assert world.say(text[: WORTHWHILE - 1] + "something else>").usage.cached_tokens == 0
    assert world.counters.resumed == 0


@pytest.mark.parametrize("damage", ["bytes", "cut", "gone"])
def test_damaged_kv_is_forgotten_and_computed_anew(world: World, damage: str) -> None:
    text = seal(world)
    (path,) = files(world)
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
    else:
        path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    assert world.say(text + "on>").usage.cached_tokens == 0
    assert world.text() == answer_to(text + "on>")
    assert (world.counters.damaged, world.counters.resumed) == (1, 0)
    assert path not in files(world)


def test_kv_of_another_engine_is_removed_when_a_model_opens(world: World) -> None:
    seal(world)
    world.engine.fingerprint = "another CPU"
    world.app.close("a", 0)
    world.app.open("a")
    assert files(world) == []
    assert world.counters.damaged == 1


def test_kv_that_does_not_fit_is_forgotten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    text = seal(world)
    monkeypatch.setattr(world.entry().context, "load", lambda _sequence, _source: False)
    assert world.say(text + "on>").usage.cached_tokens == 0
    assert world.text() == answer_to(text + "on>")
    assert world.counters.damaged == 1


def test_kv_stays_sealed_when_only_memory_is_short(world: World) -> None:
    text = seal(world)
    kv = sealed_kv(world)
    (found, length) = kv.find("", [*text.encode()], lambda _count, shared: shared) or (None, 0)
    assert found is not None
    assert length == len(text)
    world.budget.limit = world.budget.granted
    assert not kv.load(found, lambda _plain: pytest.fail("there is no memory"))
    assert files(world) == [found.path]
    assert world.counters.damaged == 0


def test_nothing_is_sealed_without_memory_for_its_plaintext(world: World) -> None:
    world.say(FIRST)
    world.budget.limit = world.budget.granted
    world.app.seal("a", 0)
    assert world.counters.sealed == 0
    assert files(world) == []


def test_a_full_disk_costs_the_sealed_copy_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> Path:
        raise NormalWorldError("The disk is full.", hint="Free some.")

    monkeypatch.setattr(world.store.derived, "kv_path", full)
    world.say(FIRST)
    world.app.seal("a", 0)
    assert world.counters.sealed == 0
    assert world.say(FIRST + world.text() + "on>").usage.cached_tokens == len(FIRST) + 8


def test_kv_that_the_engine_does_not_write_is_not_sealed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.say(FIRST)
    monkeypatch.setattr(world.entry().context, "save", lambda _sequence, _target: 0)
    world.app.seal("a", 0)
    assert world.counters.sealed == 0


def test_the_oldest_goes_when_the_disks_share_is_used_up(make_world: Make) -> None:
    world = make_world()
    oldest = seal(world)
    world.entry().conversations._sealed._quota = 2 * files(world)[0].stat().st_size + 1000
    for prompt in (SECOND, "a third conversation, which is about as long as the others>"):
        newest = seal(world, prompt)
    assert len(files(world)) == 2
    assert world.say(oldest + "on>").usage.cached_tokens == 0
    assert world.say(newest + "on>").usage.cached_tokens == len(newest)


def test_what_is_larger_than_the_disks_share_is_not_sealed(make_world: Make) -> None:
    world = make_world(sealed_kv=1000)
    seal(world)
    assert files(world) == []
    off = sealed_kv(world, quota=0)
    assert not off.save("", [1] * 40, 100, lambda _target: 100, ask=True)
    assert not off.save("", [1] * 40, 0, lambda _target: 0, ask=True)


def test_before_a_recall_only_what_there_is_time_for_is_sealed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for prompt in (FIRST, SECOND):
        world.say(prompt)
    sizes = {0: 10 << 30, 1: world.entry().context.state_size(1)}
    monkeypatch.setattr(world.entry().context, "state_size", sizes.__getitem__)
    world.app.grant(64 * CHUNK, 0)
    conversations(world).seal_before(time.monotonic() + 30)
    assert [slot.sealed for slot in conversations(world)._slots] == [False, True]
