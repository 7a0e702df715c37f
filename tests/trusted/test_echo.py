"""Prompts that come before their answers, the probabilities of their tokens, and what ends an answer."""

from __future__ import annotations

import numpy as np
import pytest
from fake_llama import END, OUTPUTS, answer_to
from fake_world import World

from flexserve.errors import CallerError
from flexserve.protocol.answers import Choice, Delta
from flexserve.protocol.prompts import TextPrompt, TokenPrompt
from flexserve.protocol.requests import Generate
from flexserve.protocol.sampling import Sampling
from flexserve.trusted.engine.sampler import log_probabilities
from flexserve.trusted.text.preparation import Preparation, Prepared


def choices(world: World, request: int) -> list[Choice]:
    return [one for it in world.sent if isinstance(it, Delta) and it.request == request for one in it.choices]


def prepared(world: World, prompt: TokenPrompt) -> Prepared:
    return Preparation(world.services.renderer).prepare(
        world.entry(), Generate(1, "a", prompt, Sampling(echo=True))
    )


def test_an_echo_is_the_prompt_before_the_answer(world: World) -> None:
    finished = world.say("hello>", echo=True)
    assert world.text() == "hello>" + answer_to("hello>")
    assert finished.usage.completion_tokens == 8


def test_the_tokens_of_a_prompt_have_the_probabilities_that_the_model_gave_them(world: World) -> None:
    text = "a longer prompt>"
    finished = world.say(text, echo=True, logprobs=1, max_tokens=2)
    found = choices(world, world._serial)
    assert [one.token.id for one in found] == [*text.encode(), *answer_to(text)[:2].encode()]
    assert (found[0].token.logprob, found[0].top) == (None, [])
    assert all(one.token.logprob is not None and len(one.top) == 1 for one in found[1:])
    assert found[-1].token.logprob == found[-1].top[0].logprob
    assert (finished.usage.prompt_tokens, finished.usage.completion_tokens) == (len(text), 2)
    scores = np.linspace(-4, -9, END + 1, dtype=np.float32)
    scores[ord(answer_to("")[2])] = 3  # what the fake says to a text that begins so
    assert found[2].token.logprob == pytest.approx(log_probabilities(scores)[ord("l")])


def test_without_an_answer_there_are_the_prompts_probabilities_only(world: World) -> None:
    finished = world.say("hello>", echo=True, logprobs=0, max_tokens=0)
    assert world.text() == "hello>"
    assert (finished.reason, finished.usage.completion_tokens) == ("length", 0)
    assert len(choices(world, world._serial)) == 6


def test_a_prompt_that_is_scored_is_computed_whole_though_its_kv_is_there(world: World) -> None:
    world.say("hello>")
    finished = world.say("hello>", echo=True, logprobs=0)
    assert finished.usage.cached_tokens == 0
    assert world.say("hello>").usage.cached_tokens > 0


def test_several_prompts_are_scored_in_one_graph_within_its_outputs(world: World) -> None:
    requests = [
        world.generate(text, echo=True, logprobs=0, max_tokens=1) for text in ("first>", "second one>")
    ]
    for request in requests:
        world.begin(request)
    world.finish(*requests)
    assert OUTPUTS == 4  # the fake refuses more in a graph
    assert bytes(one.token.id for one in choices(world, requests[0]))[:-1] == b"first>"
    assert bytes(one.token.id for one in choices(world, requests[1]))[:-1] == b"second one>"


def test_what_was_scored_before_a_graph_broke_off_is_not_said_twice(world: World) -> None:
    request = world.generate("hello, world>", echo=True, logprobs=0, max_tokens=1)
    world.begin(request)
    world.app.step("a", [request], 64)
    generation = world.app._requests[request].generation
    assert generation is not None
    generation.broke_off()
    world.entry().context._held[generation.sequence] = 0
    generation.done = 0
    generation.go_on()
    world.finish(request)
    assert bytes(one.token.id for one in choices(world, request))[:-1] == b"hello, world>"


def test_a_prompt_may_be_tokens_with_texts_among_them(world: World) -> None:
    made = prepared(world, TokenPrompt([104, "ell", 111, 62]))
    assert (made.prompt.tokens, made.prompt.echo) == ([*b"hello>"], "hello>")


def test_a_token_that_there_is_not_is_the_callers_mistake(world: World) -> None:
    with pytest.raises(CallerError) as caught:
        prepared(world, TokenPrompt([104, END + 1]))
    assert caught.value.code == "token_unknown"


def test_an_answer_ends_before_a_token_that_was_named(world: World) -> None:
    whole = answer_to("hello>")
    finished = world.say("hello>", stop_token_ids=[ord(whole[3])])
    assert world.text() == whole[: whole.index(whole[3])]
    assert finished.reason == "stop"


def test_a_text_ends_nothing_before_so_many_tokens(world: World) -> None:
    whole = answer_to("hello>")
    world.say("hello>", stop=[whole[1]], min_tokens=5)
    assert len(world.text()) >= 5
    assert world.text().startswith(whole[:5])


def test_an_answer_goes_on_where_its_end_is_ignored(world: World) -> None:
    finished = world.say("hello>", ignore_eos=True, max_tokens=20)
    assert (finished.reason, finished.usage.completion_tokens) == ("length", 20)


def test_a_text_without_a_prompt_of_text_is_the_same_as_its_tokens(world: World) -> None:
    made = [
        Preparation(world.services.renderer).prepare(world.entry(), Generate(1, "a", prompt, Sampling()))
        for prompt in (TextPrompt("hello>"), TokenPrompt([*b"hello>"]))
    ]
    assert made[0].prompt.tokens == made[1].prompt.tokens
    assert made[0].prompt.echo == made[1].prompt.echo == ""
