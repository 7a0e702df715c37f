"""Generations on a fake engine: what is said, what is sent, how they end, and what breaks them off."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from fake_llama import CONTEXT, WHOLE, answer_to
from fake_world import World

from flexserve.errors import CallerError, CancelledError, GrantRefusedError, InternalError, NormalWorldError
from flexserve.protocol.answers import Delta, Prefilled, Started
from flexserve.protocol.prompts import ChatMessage, ChatPrompt
from flexserve.protocol.trusted_app import Kind, Progress
from flexserve.trusted.store.image import DamagedImageError

DIGITS = (
    '{"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], "additionalProperties": false}'
)


def error_of(progress: Progress) -> Exception:
    assert progress.error is not None
    return progress.error


def test_an_answer_is_what_the_model_says_to_the_whole_prompt(world: World) -> None:
    finished = world.say("hello>")
    assert world.text() == answer_to("hello>")
    assert finished.reason == "stop"
    assert (finished.usage.prompt_tokens, finished.usage.completion_tokens) == (6, 8)
    assert world.sent[0] == Started(1, 6)
    assert [it.tokens for it in world.sent[1:] if isinstance(it, Delta)] == [1] * 8


def test_the_progress_of_a_prompt_is_told_to_whoever_asks(world: World) -> None:
    request = world.generate("in pieces>", progress=True)
    world.begin(request)
    world.finish(request, limit=4)
    told = [message.tokens for message in world.sent if isinstance(message, Prefilled)]
    assert told == [4, 8, 10]
    world.say("in pieces, too>")
    assert told == [message.tokens for message in world.sent if isinstance(message, Prefilled)]


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_a_prompt_in_pieces_gets_the_same_answer(world: World, limit: int) -> None:
    request = world.generate("in pieces>")
    begun = world.begin(request)
    assert begun == Progress(request, 10)
    first = world.app.step("a", [request], limit)
    assert first == [Progress(request, 10 - limit)]
    assert world.text() == ""
    world.finish(request, limit=limit)
    assert world.text() == answer_to("in pieces>")


def test_a_conversation_is_what_the_models_template_makes_of_it(world: World) -> None:
    world.say(ChatPrompt([ChatMessage("user", "hi")]))
    assert world.text() == answer_to("user: hi>")


def test_generations_of_one_graph_do_not_disturb_each_other(world: World) -> None:
    first, second = world.generate("first>"), world.generate("the second>")
    for request in (second, first):
        world.begin(request)
    world.finish(first, second)
    assert world.text(first) == answer_to("first>")
    assert world.text(second) == answer_to("the second>")


def test_an_answer_ends_at_its_limit(world: World) -> None:
    finished = world.say("hello>", max_tokens=3)
    assert finished.reason == "length"
    assert finished.usage.completion_tokens == 3
    assert world.text() == answer_to("hello>")[:3]


def test_an_answer_ends_where_the_context_does(world: World) -> None:
    prompt = "x" * (CONTEXT - 6) + ">"
    finished = world.say(prompt, max_tokens=100)
    assert (finished.reason, finished.usage.completion_tokens) == ("length", 5)


@pytest.mark.parametrize(
    ("rounding", "how", "said", "computed"),
    [
        (5, {}, 8, 10),  # with the token that ends it nine are chosen
        (8, {}, 8, 16),
        (4, {"max_tokens": 3}, 3, 4),
        (4, {"max_tokens": 4}, 4, 4),
        (4, {"max_tokens": 0}, 0, 4),
        (3, {"stop": [answer_to("hello>")[4:6]]}, 6, 6),
    ],
)
def test_an_answer_is_computed_to_a_multiple_and_nobody_sees_the_rest(
    world: World, rounding: int, how: dict[str, Any], said: int, computed: int
) -> None:
    finished = world.say("hello>", rounding=rounding, **how)
    text, usage = world.text(), finished.usage
    assert sum(it.tokens for it in world.sent if isinstance(it, Delta)) == computed
    plain = world.say("hello>", **how)
    assert (text, usage.completion_tokens) == (world.text(), said)
    assert (plain.reason, plain.usage.completion_tokens) == (finished.reason, said)


def test_a_rounded_answer_ends_where_the_context_does(world: World) -> None:
    finished = world.say("x" * (CONTEXT - 12) + ">", rounding=64)
    assert (finished.reason, finished.usage.completion_tokens) == ("stop", 8)


def test_an_answer_ends_before_a_stop_text(world: World) -> None:
    whole = answer_to("hello>")
    finished = world.say("hello>", stop=[whole[4:6]])
    assert finished.reason == "stop"
    assert world.text() == whole[:4]


def test_what_might_have_become_a_stop_text_is_sent_at_the_end(world: World) -> None:
    whole = answer_to("hello>")
    world.say("hello>", stop=[whole[-2:] + "!"])
    assert world.text() == whole


@pytest.mark.parametrize("count", [0, 2])
def test_logprobs_name_the_chosen_token_and_the_likeliest(world: World, count: int) -> None:
    world.say("hello>", logprobs=count, max_tokens=1)
    delta = next(it for it in world.sent if isinstance(it, Delta))
    (choice,) = delta.choices
    assert choice.token.piece == answer_to("hello>")[:1].encode()
    assert choice.token.logprob is not None
    assert choice.token.logprob < 0
    assert [it.piece for it in choice.top] == [choice.token.piece, b"\0"][:count]
    scores = [it.logprob or 0 for it in choice.top]
    assert scores == sorted(scores, reverse=True)


def test_an_answer_follows_its_schema_whatever_the_model_would_say(world: World) -> None:
    finished = world.say("hello>", schema=DIGITS)
    assert json.loads(world.text()) == {"n": 7}
    assert finished.reason == "stop"


def test_a_grammar_that_cannot_be_met_any_more_ends_its_request_only(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    confined, free = world.generate("one>", schema=DIGITS), world.generate("two>")
    for request in (confined, free):
        world.begin(request)

    def refuse(_token: int) -> None:
        raise CallerError("The vocabulary cannot write it.", hint="Simplify it.")

    monkeypatch.setattr(world.app._requests[confined].generation._sampler, "accept", refuse)  # type: ignore[union-attr]
    ends = world.finish(confined, free)
    assert isinstance(ends[confined].error, CallerError)
    assert ends[free].finished is not None
    assert world.text(free) == answer_to("two>")


def test_times_and_bytes_are_told(world: World) -> None:
    timings = world.say().timings
    assert timings.restored_bytes == WHOLE - 2000  # each buffer ends in a short chunk
    assert timings.ttft >= timings.prefill > 0
    assert timings.decode > 0
    assert world.say().timings.restored_bytes == 0


# ---- what breaks a generation off -----------------------------------------------------------------


def interrupted(world: World, act: Callable[[], Any], after: int = 3) -> None:
    """Have `act` happen once, after `after` slices."""
    slices = 0

    def inside(_context: Any) -> None:
        nonlocal slices
        slices += 1
        if slices == after:
            act()

    world.engine.inside = inside


def test_a_stopped_generation_ends_in_the_middle_of_a_graph(world: World) -> None:
    request = world.generate()
    world.begin(request)
    interrupted(world, lambda: world.app.stop(request))
    (progress,) = world.app.step("a", [request], 64)
    assert isinstance(progress.error, CancelledError)


def test_a_graph_for_others_too_is_not_broken_off(world: World) -> None:
    first, second = world.generate("first>"), world.generate("second>")
    for request in (first, second):
        world.begin(request)
    interrupted(world, lambda: world.app.stop(first))
    assert all(it.error is None for it in world.app.step("a", [first, second], 64))


def test_stopping_what_does_not_compute_breaks_nobody_off(world: World) -> None:
    first, second = world.generate("first>"), world.generate("second>")
    for request in (first, second):
        world.begin(request)
    interrupted(world, lambda: world.app.stop(first))
    (progress,) = world.app.step("a", [second], 64)
    assert progress.error is None


def test_of_a_graph_that_broke_off_nothing_is_believed(world: World) -> None:
    request = world.generate("a long conversation it is>")
    world.begin(request)
    interrupted(world, lambda: world.app.stop(request))
    world.app.step("a", [request], 64)
    world.app.end(request)
    assert world.say("a long conversation it is>").usage.cached_tokens == 0
    assert world.text() == answer_to("a long conversation it is>")


@pytest.mark.parametrize("goes_back", [True, False])
def test_a_generation_goes_on_behind_what_it_had_when_memory_was_refused(
    world: World, goes_back: bool
) -> None:
    world.entry()._model.goes_back = goes_back
    request = world.generate("refused once>")
    world.begin(request)
    world.app.step("a", [request], 5)

    def refuse() -> None:
        raise GrantRefusedError("No memory.", hint="Wait.", missing=4096)

    interrupted(world, refuse)
    (progress,) = world.app.step("a", [request], 4)
    assert isinstance(progress.error, GrantRefusedError)
    left = world.app.resume(request)
    assert left == (8 if goes_back else 13)  # tokens that a part of a graph wrote are forgotten
    world.finish(request)
    assert world.text() == answer_to("refused once>")


def test_an_error_without_blame_is_ours_and_quotes_nothing(world: World) -> None:
    request = world.generate()
    world.begin(request)

    def fail() -> None:
        raise RuntimeError("secret text")

    interrupted(world, fail)
    error = error_of(world.app.step("a", [request], 64)[0])
    assert isinstance(error, InternalError)
    assert "secret" not in str(error)


# ---- damage ---------------------------------------------------------------------------------------


def damage(world: World) -> None:
    """Have the image be bad and all weights gone, so that they are read again."""
    world.entry()._model.source.damaged.add((0, 1))
    world.recall(Kind.WEIGHTS)


def test_a_damaged_image_is_made_anew_and_the_answer_is_the_same(world: World) -> None:
    first, second = world.generate("first>"), world.generate("the second one>")
    for request in (first, second):
        world.begin(request)
    world.app.step("a", [first, second], 6)
    damage(world)
    broken = world.app.step("a", [first, second], 3)
    assert sorted((it.request, it.pending) for it in broken) == [(first, 1), (second, 9)]
    world.finish(first, second)
    assert [world.text(it) for it in (first, second)] == [answer_to("first>"), answer_to("the second one>")]
    assert world.entry()._model.remade == 1


def test_damage_is_forgiven_once_in_a_request(world: World) -> None:
    old, new = world.generate("old>"), world.generate("new>")
    world.begin(old)
    world.app.step("a", [old], 2)
    damage(world)
    world.app.step("a", [old], 2)
    world.begin(new)
    damage(world)
    ends = {it.request: it for it in world.app.step("a", [old, new], 2)}
    assert isinstance(ends[old].error, DamagedImageError)
    assert (ends[new].error, ends[new].pending) == (None, 4)
    world.finish(new)
    assert world.text(new) == answer_to("new>")


def test_an_image_that_cannot_be_made_anew_ends_all_that_computed(world: World) -> None:
    first, second = world.generate("first>"), world.generate("second>")
    for request in (first, second):
        world.begin(request)
    damage(world)
    world.entry()._model.error = NormalWorldError("The disk is full.", hint="Free some.")
    for progress in world.app.step("a", [first, second], 64):
        assert isinstance(progress.error, NormalWorldError)
