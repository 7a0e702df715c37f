"""A model with a context and a type of KV of its own, in a real secure world."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from library import Library

from flexserve.errors import CallerError
from flexserve.harness.worlds import DrivenWorld
from flexserve.protocol.model_options import ModelOptions
from flexserve.protocol.prompts import TextPrompt, TokenPrompt
from flexserve.protocol.statuses import ModelStatus

pytestmark = pytest.mark.engine

PROMPT = "Kato bime wurafo. " * 8


@pytest.fixture(scope="module")
def model(library: Library) -> str:
    return library.add(library.file("small-llama", "q8_0", seed=17), "of-its-own")


@pytest.fixture
def configured(world: DrivenWorld) -> Iterator[DrivenWorld]:
    yield world
    world.configure({})


def state(world: DrivenWorld, model: str) -> ModelStatus:
    return next(status for status in world.status().models if status.name == model)


def kv_after_a_request(world: DrivenWorld, model: str, options: ModelOptions) -> int:
    """Return the bytes of KV in memory after a request to `model`, served by `options`."""
    world.configure({model: options})
    world.result(world.submit(model, TextPrompt(PROMPT), 4, reuse=True))
    status = state(world, model)
    assert status.description is not None
    assert status.description.kv == (options.kv or "f16")
    assert status.description.context == options.context
    return status.kv


def test_kv_takes_memory_by_context_and_type(configured: DrivenWorld, model: str) -> None:
    long, short = [
        kv_after_a_request(configured, model, ModelOptions(context=context)) for context in (1024, 512)
    ]
    eight, four = [
        kv_after_a_request(configured, model, ModelOptions(context=1024, kv=kv)) for kv in ("q8_0", "q4_0")
    ]
    assert short <= 0.6 * long
    assert four < eight < long


def test_a_prompt_longer_than_the_models_own_context_is_refused(configured: DrivenWorld, model: str) -> None:
    configured.configure({model: ModelOptions(context=16)})
    with pytest.raises(CallerError, match="16") as caught:
        configured.generate(model, PROMPT, 4)
    assert caught.value.code == "context_length_exceeded"
    assert "flexserve set MODEL context" in caught.value.hint


def test_an_answer_goes_on_behind_a_full_context_as_from_the_tokens_that_stay(
    configured: DrivenWorld, library: Library
) -> None:
    model, size = library.add(library.file("small-llama", "q4_0", seed=18), "shifted"), 48
    configured.configure({model: ModelOptions(context=size, shift=True)})
    prompt: list[int | str] = [*range(300, 330)]
    said = answer(configured, model, prompt, 40)
    full = [*prompt, *said[: size - len(prompt)]]
    kept = 1  # the token that begins a text
    stayed = full[:kept] + full[kept + (size - 1 - kept) // 2 :]
    assert answer(configured, model, stayed, 15) == said[size - len(prompt) :][:15]


def answer(world: DrivenWorld, model: str, prompt: list[int | str], count: int) -> list[int]:
    """Return the tokens of an answer of `count` tokens."""
    said = world.result(world.submit(model, TokenPrompt(prompt), count, logprobs=0))
    return [choice.token.id for choice in said.choices]
