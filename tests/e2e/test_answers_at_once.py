"""Answers that are computed beside each other are those of each alone, whatever a model remembers them by."""

from __future__ import annotations

from pathlib import Path

import pytest
from library import Library

from flexserve.harness.worlds import DrivenWorld
from flexserve.protocol.prompts import TextPrompt
from flexserve.testing.architectures import make_models

pytestmark = pytest.mark.engine

PROMPTS = tuple(f"{number} and {'more ' * (number % 4)}" for number in range(12))


def ask(world: DrivenWorld, model: str, number: int) -> int:
    """Ask for an answer that ends sooner or later than those of others."""
    return world.submit(model, TextPrompt(PROMPTS[number]), 3 + number % 5, logprobs=0)


def heard(world: DrivenWorld, request: int) -> list[int]:
    """Return the tokens of an answer."""
    return [choice.token.id for choice in world.result(request).choices]


@pytest.mark.parametrize("architecture", ["llama", "jamba", "plamo2"])
def test_answers_at_once_are_those_of_each_alone(
    own_library: Library, tmp_path: Path, architecture: str
) -> None:
    assert make_models([architecture], tmp_path) == {}
    model = own_library.add(tmp_path / f"{architecture}.gguf", architecture)
    with own_library.open(parallel=8) as world:
        numbers = range(len(PROMPTS))
        alone = [heard(world, ask(world, model, number)) for number in numbers]
        assert len({tuple(tokens) for tokens in alone}) > 1
        requests = [ask(world, model, number) for number in numbers]
        assert [heard(world, request) for request in requests] == alone
