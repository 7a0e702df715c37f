"""Several models in one secure world: who makes way, who is brought in, who is kept."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from library import PROMPTS, Library

from flexserve.harness.worlds import DrivenWorld
from flexserve.protocol.prompts import TextPrompt
from flexserve.protocol.statuses import ModelStatus
from flexserve.units import MIB

pytestmark = pytest.mark.engine

TOKENS = 6


@pytest.fixture(scope="module")
def pair(library: Library) -> tuple[str, str]:
    """Two models whose images are made."""
    source = library.file("small-llama", "q4_0")
    names = library.add(source, "pair-a"), library.add(source, "pair-b")
    with library.open() as world:
        for name in names:
            world.warm(name)
    return names


def state(world: DrivenWorld, name: str) -> ModelStatus:
    return next(model for model in world.status().models if model.name == name)


def ask(world: DrivenWorld, name: str, **terms: object) -> str:
    return world.result(world.submit(name, TextPrompt(PROMPTS[1]), TOKENS, **terms)).text  # type: ignore[arg-type]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_idle_model_makes_way_for_the_one_that_is_asked(library: Library, pair: tuple[str, str]):
    first, second = pair
    right = library.answer(library.file("small-llama", "q4_0"), PROMPTS[1], TOKENS)
    with library.open() as world:
        assert ask(world, first) == right
        world.budget = world.granted + MIB  # there is no more than what the first one has
        assert ask(world, second) == right
        assert state(world, second).resident == state(world, second).weights
        assert state(world, first).resident < state(world, first).weights
        assert ask(world, first) == right


def test_the_next_model_is_brought_in_when_it_is_announced(library: Library, pair: tuple[str, str]):
    first, second = pair
    with library.open() as world:
        ask(world, first, next_model=second)
        until(lambda: state(world, second).state == "loaded")
        answer = world.result(world.submit(second, TextPrompt(PROMPTS[1]), TOKENS))
        assert answer.finished.timings.restored_bytes == 0


def test_a_workflow_is_learned(library: Library, pair: tuple[str, str]):
    first, second = pair
    with library.open() as world:
        for _ in range(3):
            ask(world, first)
            ask(world, second)
        world.recall(None)
        ask(world, first)
        until(lambda: state(world, second).state == "loaded")


def test_a_recall_ends_what_is_brought_in_on_suspicion(library: Library, pair: tuple[str, str]):
    first, second = pair
    with library.open() as world:
        ask(world, first, next_model=second)
        world.recall(None)
        until(lambda: world.status().memory.secure == 0)  # but for what was just claimed
        time.sleep(0.2)
        assert world.status().memory.secure == 0


def test_keep_alive_0_gives_everything_back_at_once(library: Library, pair: tuple[str, str]):
    first, _ = pair
    with library.open() as world:
        ask(world, first, keep_alive=0)
        until(lambda: world.status().memory.secure == 0 and world.granted == 0)
        ask(world, first, keep_alive=-1)
        time.sleep(0.2)
        assert state(world, first).state == "loaded"


def test_two_models_in_memory_are_served_in_turns(library: Library, pair: tuple[str, str]):
    first, second = pair
    with library.open(parallel=1) as world:
        world.warm(first)
        world.warm(second)
        long = world.submit(first, TextPrompt(PROMPTS[1]), 400)
        short = world.submit(second, TextPrompt(PROMPTS[1]), 2)
        assert world.result(short).finished.usage.completion_tokens == 2
        assert world.status().running == 1, "the long one was to go on meanwhile"
        assert world.result(long).finished.usage.completion_tokens > 2


def test_a_recalled_model_comes_back_by_itself_and_is_the_first_to_go_again(
    library: Library, pair: tuple[str, str]
):
    first, _ = pair
    right = library.answer(library.file("small-llama", "q4_0"), PROMPTS[1], TOKENS)
    with library.open(rewarm=True) as world:
        ask(world, first)
        world.recall(None)
        until(lambda: state(world, first).state == "loaded")
        status = state(world, first)
        assert status.rewarmed == status.weights
        assert status.rewarmed_for == f"{first}: it had 100% of the requests of the last hour"
        plan = world.recall(world.welcome.chunk).plan
        assert plan[0].startswith(f"weights of {first}")
        assert len(plan) == 1
        answer = world.result(world.submit(first, TextPrompt(PROMPTS[1]), TOKENS))
        assert answer.text == right
        assert state(world, first).rewarmed == 0


def test_nothing_comes_back_when_the_normal_world_has_nothing_to_spare_or_the_setting_is_off(
    library: Library, pair: tuple[str, str]
):
    first, _ = pair
    for rewarm, budget in ((True, 0), (False, None)):
        with library.open(rewarm=rewarm) as world:
            ask(world, first)
            world.budget = budget
            world.recall(None)
            time.sleep(0.5)
            assert state(world, first).resident == 0
