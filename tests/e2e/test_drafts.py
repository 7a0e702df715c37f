"""A draft changes how fast an answer comes, and nothing of what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from library import PROMPTS, Library

from flexserve.harness.worlds import DrivenWorld, Generated
from flexserve.protocol.model_options import ModelOptions
from flexserve.protocol.prompts import TextPrompt
from flexserve.protocol.sampling import Sampling

pytestmark = pytest.mark.engine

TOKENS = 40
PROMPT = PROMPTS[0]


def sampled(world: DrivenWorld, model: str, seed: int) -> Generated:
    sampling = Sampling(max_tokens=TOKENS, temperature=1.0, seed=seed)
    return world.result(world.ask(model, TextPrompt(PROMPT), sampling))


@pytest.mark.parametrize("draft", ["itself", "another"])
def test_answers_with_a_draft_are_those_without(own_library: Library, draft: str) -> None:
    source = own_library.file("small-llama", "f16")
    model = own_library.add(source, "model")
    own_library.add(source if draft == "itself" else own_library.file("small-llama", "q8_0", seed=1), "draft")
    expected = own_library.answer(source, PROMPT, TOKENS)
    with own_library.open() as world:
        chosen = [sampled(world, model, seed).text for seed in (1, 2, 3)]
    with own_library.open() as world:
        world.configure({model: ModelOptions(draft="draft")})
        world.generate("draft", PROMPT, 1)  # it is in memory
        greedy = world.generate(model, PROMPT, TOKENS)
        assert greedy.text == expected
        timings = greedy.finished.timings
        assert timings.guessed > 0
        assert (timings.guessed_right > timings.guessed / 2) == (draft == "itself")
        assert [sampled(world, model, seed).text for seed in (1, 2, 3)] == chosen
        world.recall(None)
        assert world.generate(model, PROMPT, TOKENS).text == expected, "after a recall"


def test_a_draft_with_another_vocabulary_is_refused_and_the_model_answers_without_it(
    own_library: Library,
) -> None:
    source = own_library.file("small-llama", "q8_0")
    model = own_library.add(source, "model")
    own_library.add(Path(__file__).parents[2] / "models/tiny/flexserve-tiny.gguf", "draft")
    with own_library.open() as world:
        world.configure({model: ModelOptions(draft="draft")})
        world.generate("draft", PROMPT, 1)
        answer = world.generate(model, PROMPT, TOKENS)
        assert answer.text == own_library.answer(source, PROMPT, TOKENS)
        assert answer.finished.timings.guessed == 0
        [about] = [status.description for status in world.status().models if status.name == model]
        assert about is not None
        assert about.draft == "draft"
        [error] = [status.error for status in world.status().models if status.name == "draft"]
    assert error is not None
    assert error.code == "draft_mismatch"
