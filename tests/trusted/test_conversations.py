"""KV between two requests: kept in a slot, sealed to disk, found by its owner, given up when it has to go."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_engine import CHUNK
from fake_llama import CONTEXT, KV, answer_to
from fake_world import World

from flexserve.errors import GrantRefusedError, NormalWorldError
from flexserve.protocol.trusted_app import Kind
from flexserve.trusted.kv.conversations import Conversations
from flexserve.trusted.kv.sealed import WORTHWHILE, SealedKv

Make = Callable[..., World]
FIRST = "the first of two conversations that are long enough to be worth it>"
SECOND = "a second one, about something else altogether, just as long>"


def conversations(world: World) -> Conversations:
    found: Conversations = world.entry().conversations
    return found


def files(world: World) -> list[Path]:
    return sorted((world.store.root / "kv").iterdir())


def sealed_kv(world: World, quota: int = 1 << 30) -> SealedKv:
    """Return what another process would find of sealed KV."""
    return SealedKv(
        *(world.store, "a", world.engine.fingerprint, world.flexmem),
        form=f"f16, {CONTEXT} tokens",
        quota=quota,
        counters=world.counters,
    )


def seal(world: World, prompt: str = FIRST, **how: Any) -> str:
    """Have a conversation, sealed and out of memory; return all of its text."""
    world.say(prompt, **how)
    for kv in world.unsealed():
        world.app.seal(kv.model, kv.sequence)
    world.recall(Kind.KV)
    return prompt + world.text()


# ---- slots ----------------------------------------------------------------------------------------


def test_two_conversations_keep_their_slots(world: World) -> None:
    texts = []
    for prompt in (FIRST, SECOND):
        world.say(prompt)
        texts.append(prompt + world.text())
    for text in texts:
        assert world.say(text + "on>").usage.cached_tokens == len(text)
        assert world.text() == answer_to(text + "on>")


def test_the_conversation_used_longest_ago_makes_way_and_is_sealed(world: World) -> None:
    world.say(FIRST)
    first = FIRST + world.text()
    world.say(SECOND)
    world.say("a third of those conversations, which needs a slot of its own>")
    assert world.counters.sealed == 1
    assert world.say(first + "on>").usage.cached_tokens == len(first)
    assert world.counters.resumed == 1
    assert world.text() == answer_to(first + "on>")


def test_a_short_conversation_that_makes_way_is_not_worth_sealing(world: World) -> None:
    for prompt in ("one>", "two>", "three>"):
        world.say(prompt)
    assert world.counters.sealed == 0
    assert world.unsealed() == []


def test_a_conversation_that_goes_on_without_its_end_does_not_wait_for_that_to_be_sealed(
    world: World,
) -> None:
    world.say(FIRST + SECOND)
    text = FIRST + SECOND + world.text()
    assert world.say(text[:-2] + "but said otherwise>").usage.cached_tokens == len(text) - 2
    assert world.counters.sealed == 0


def test_a_conversation_that_loses_more_than_its_end_is_sealed(world: World) -> None:
    long = FIRST + SECOND * 3
    world.say(long)
    said = len(world.text())
    assert world.say(long[: len(long) - 100 + said] + "another way>").usage.cached_tokens < len(long)
    assert world.counters.sealed == 1


def test_a_conversation_that_cannot_be_cut_is_computed_from_its_beginning(world: World) -> None:
    world.entry()._model.goes_back = False
    world.say(FIRST)
    assert world.say(FIRST + "other>").usage.cached_tokens == 0
    assert world.text() == answer_to(FIRST + "other>")


def test_a_prompt_that_several_requests_have_is_computed_once(make_world: Make) -> None:
    world = make_world(sequences=3)
    requests = [world.generate(FIRST) for _ in range(3)]
    assert world.begin(requests[0]) is not None
    assert [world.begin(request) for request in requests[1:]] == [None, None]
    world.app.step("a", requests[:1], 512)
    begun = [world.app.begin(request) for request in requests[1:]]
    assert [progress.pending for progress in begun if progress is not None] == [1, 1]
    ends = world.finish(*requests)
    assert [world.text(request) for request in requests] == [answer_to(FIRST)] * 3
    usages = [end.finished.usage for end in ends.values() if end.finished is not None]
    assert sorted(one.prompt_tokens - one.cached_tokens for one in usages) == [1, 1, len(FIRST)]


def test_a_beginning_that_two_prompts_share_is_waited_for_and_no_longer(world: World) -> None:
    one, other = world.generate(FIRST + SECOND), world.generate(FIRST + "more of it>")
    world.begin(one)
    assert world.begin(other) is None
    world.app.step("a", [one], len(FIRST))
    progress = world.app.begin(other)
    assert progress is not None
    assert progress.pending == len("more of it>")
    world.finish(one, other)
    assert (world.text(one), world.text(other)) == (
        answer_to(FIRST + SECOND),
        answer_to(FIRST + "more of it>"),
    )


@pytest.mark.parametrize("how", [{"owner": "b"}, {"reuse": False}])
def test_nobody_waits_for_kv_that_is_not_theirs_to_use(world: World, how: dict[str, Any]) -> None:
    world.begin(world.generate(FIRST, owner="a"))
    progress = world.begin(world.generate(FIRST, **{"owner": "a"} | how))
    assert progress is not None
    assert progress.pending == len(FIRST)


def test_nobody_waits_for_kv_of_which_no_copy_is_of_use(make_world: Make) -> None:
    world = make_world(sequences=3)
    world.say("opens the model>")
    world.entry()._model.goes_back = False
    world.begin(world.generate(FIRST))
    progress = world.begin(world.generate(FIRST))
    assert progress is not None
    assert progress.pending == len(FIRST)


def test_a_copy_for_which_there_is_no_memory_is_computed(make_world: Make) -> None:
    world = make_world(sequences=2)
    one, other = world.generate(FIRST), world.generate(FIRST)
    world.begin(one)
    world.prepare(other)
    world.app.step("a", [one], 512)
    world.entry().context.save = lambda _sequence, _target: 0
    progress = world.app.begin(other)
    assert progress is not None
    assert progress.pending == len(FIRST)
    world.finish(one, other)
    assert world.text(other) == answer_to(FIRST)


def test_a_slot_whose_memory_was_refused_is_free_and_empty(make_world: Make) -> None:
    world = make_world(sequences=1)
    world.say(FIRST)
    world.recall(Kind.KV)
    world.budget.limit = world.budget.granted + CHUNK
    request = world.generate(SECOND)
    with pytest.raises(GrantRefusedError):
        world.begin(request)
    assert not conversations(world).busy
    assert world.app.pool().secure == world.entry().weights.resident + 2000 + 3 * CHUNK
    world.budget.limit = 1 << 30
    assert world.app.begin(request) is not None
    world.finish(request)
    assert world.text() == answer_to(SECOND)


def test_idle_kv_goes_the_one_used_longest_ago_first(world: World) -> None:
    world.say(FIRST)
    first = FIRST + world.text()
    world.say(SECOND)
    second = SECOND + world.text()
    assert world.recall(Kind.KV, 1) == KV
    assert world.counters.dropped == 1
    assert world.say(second + "on>").usage.cached_tokens == len(second)
    assert world.say(first + "on>").usage.cached_tokens == 0


def test_sealed_kv_that_goes_is_no_loss(world: World) -> None:
    seal(world)
    assert world.counters.dropped == 0


def test_a_prompt_that_goes_on_in_its_slot_moves_no_plaintext(world: World) -> None:
    world.say(FIRST)
    text = FIRST + world.text()
    known = [*text.encode()]
    assert conversations(world).plaintext("", known) == 0


def test_what_will_be_sealed_or_resumed_is_told_before(make_world: Make) -> None:
    world = make_world(sequences=1)
    text = seal(world)
    size = files(world)[0].stat().st_size
    assert conversations(world).plaintext("", [*text.encode()]) == size
    world.say(SECOND)
    held = (len(SECOND) + 8) * 64
    assert conversations(world).plaintext("", [*b"something else"]) == held
    assert conversations(world).plaintext("", [*text.encode()]) == max(size, held)
    request = world.generate(SECOND)
    world.begin(request)
    assert conversations(world).plaintext("", [*text.encode()]) == 0  # all slots are busy


# ---- sealing --------------------------------------------------------------------------------------


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

    monkeypatch.setattr(world.store, "kv_path", full)
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


# ---- what policy learns of it -----------------------------------------------------------------------


def test_idle_kv_is_described_by_sizes_counts_and_times(world: World) -> None:
    before = time.monotonic()
    world.say(FIRST)
    text = FIRST + world.text()
    (kv,) = world.app.idle_kv()
    assert (kv.model, kv.sequence, kv.size, kv.tokens) == ("a", 0, KV, len(text))
    assert 0 < kv.touched < kv.size
    assert kv.last_used >= before
    assert (kv.sealed, kv.worth_sealing) == (False, True)
    world.app.seal("a", 0)
    (kv,) = world.app.idle_kv()
    assert (kv.sealed, kv.worth_sealing) == (True, False)


def test_the_conversation_that_is_named_goes_and_not_the_one_used_longest_ago(world: World) -> None:
    for prompt in (FIRST, SECOND):
        world.say(prompt)
    assert world.app.evict("a", Kind.KV, 1 << 30, keep=True, sequence=1) == KV
    assert [kv.sequence for kv in world.app.idle_kv()] == [0]


def test_how_long_sealed_kv_takes_to_come_back_is_measured(world: World) -> None:
    text = seal(world)
    assert world.app.kv_status().resumed_tokens == 0
    world.say(text + "on>")
    counters = world.app.kv_status()
    assert counters.resumed_tokens == len(text)
    assert counters.resumed_ms > 0
