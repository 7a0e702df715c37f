"""Real weights: what they say is what plain llama.cpp says of them, whatever the OS does to the memory."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
from weights import PARAGRAPH, Plain, Weights, vector

from flexserve.harness.worlds import DrivenWorld, Generated
from flexserve.protocol.prompts import TextPrompt

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

MODELS = ("smollm2", "gemma3")
COUNT = 24  # tokens of an answer
NEAR = 1e-4  # of a log-probability
WINDOW = 512  # tokens that most layers of gemma3 look back
MORE = " In short, FlexServe"


@pytest.fixture(scope="module")
def world(weights: Weights) -> Iterator[DrivenWorld]:
    with weights.open() as world:
        yield world


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def plain(weights: Weights, model: str) -> Iterator[Plain]:
    with weights.plain(model) as plain:
        yield plain


def ask(world: DrivenWorld, model: str, text: str, owner: str = "") -> Generated:
    """Continue a text greedily; with an owner, the KV of the beginning is used again."""
    number = world.submit(model, TextPrompt(text), COUNT, reuse=bool(owner), owner=owner, logprobs=0)
    return world.result(number)


def assert_plain(answer: Generated, plain: Plain, text: str) -> None:
    """See that an answer has plain llama.cpp's tokens, and probabilities near them."""
    tokens, scores = plain.greedy(text, COUNT, keep=answer.finished.usage.cached_tokens)
    assert [choice.token.id for choice in answer.choices] == tokens[: len(answer.choices)]
    assert len(answer.choices) == COUNT or answer.finished.reason == "stop"
    found = [choice.token.logprob for choice in answer.choices]
    assert found == pytest.approx(scores[: len(found)], abs=NEAR)


def weights_of(world: DrivenWorld, model: str) -> int:
    return next(one.weights for one in world.status().models if one.name == model)


def wait_for_sealing(world: DrivenWorld, count: int) -> None:
    deadline = time.monotonic() + 120
    while world.status().kv.sealed < count:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_fresh_answer_and_those_after_recalls_are_plain_llama_cpps(
    world: DrivenWorld, model: str, plain: Plain
) -> None:
    assert_plain(ask(world, model, PARAGRAPH), plain, PARAGRAPH)
    for demand in (weights_of(world, model) // 2, None):
        assert world.recall(demand).returned > 0
        answer = ask(world, model, PARAGRAPH)
        assert answer.finished.timings.restored_bytes > 0
        assert_plain(answer, plain, PARAGRAPH)


def test_an_answer_that_is_continued_is_plain_llama_cpps(
    world: DrivenWorld, model: str, plain: Plain
) -> None:
    first = ask(world, model, PARAGRAPH, "continued")
    assert_plain(first, plain, PARAGRAPH)
    longer = PARAGRAPH + first.text + MORE
    answer = ask(world, model, longer, "continued")
    assert answer.finished.usage.cached_tokens >= first.finished.usage.prompt_tokens - 1
    assert_plain(answer, plain, longer)


def test_a_conversation_whose_kv_was_parked_goes_on_as_plain_llama_cpp(
    world: DrivenWorld, model: str, plain: Plain
) -> None:
    kv = world.status().kv
    first = ask(world, model, PARAGRAPH, "parked")
    assert_plain(first, plain, PARAGRAPH)
    wait_for_sealing(world, kv.sealed + 1)
    world.recall(None)
    assert world.status().memory.secure == 0
    longer = PARAGRAPH + first.text + MORE
    answer = ask(world, model, longer, "parked")
    assert world.status().kv.resumed == kv.resumed + 1
    assert answer.finished.usage.cached_tokens > 0
    assert_plain(answer, plain, longer)


def test_a_window_that_slides_is_plain_llama_cpps(world: DrivenWorld, weights: Weights) -> None:
    long = (PARAGRAPH + "\n") * 8
    with weights.plain("gemma3") as plain:
        assert len(plain.tokens(long)) > WINDOW + COUNT
        first = ask(world, "gemma3", long, "window")
        assert_plain(first, plain, long)
        longer = long + first.text + MORE
        continued = ask(world, "gemma3", longer, "window")
        assert continued.finished.usage.cached_tokens >= first.finished.usage.prompt_tokens - 1
        assert_plain(continued, plain, longer)
        world.recall(None)
        restored = ask(world, "gemma3", longer, "window")
        assert_plain(restored, plain, longer)


def test_a_texts_vector_is_plain_llama_cpps(world: DrivenWorld, weights: Weights, model: str) -> None:
    (found,) = world.vectors(world.start_embedding(model, [PARAGRAPH]))
    assert np.frombuffer(found, "<f4") == pytest.approx(vector(weights.files[model], PARAGRAPH), abs=2e-3)
