"""KV between two requests, in memory: kept in a slot, found by its owner, given up when it has to go."""

from __future__ import annotations

import time
from typing import Any

import pytest
from conversing import FIRST, SECOND, Make, conversations, files, seal
from fake_engine import CHUNK
from fake_llama import KV, answer_to
from fake_world import World

from flexserve.errors import GrantRefusedError
from flexserve.protocol.trusted_app import Kind

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
