"""Greedy output is that of plain llama.cpp, token for token, whatever the OS does to the memory meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
import threading
from collections.abc import Iterator

import pytest
from library import PROMPTS, Library

from flexserve.errors import GrantRefusedError
from flexserve.harness.shapes import SHAPES
from flexserve.harness.worlds import DrivenWorld
from flexserve.units import MIB

pytestmark = pytest.mark.engine

TOKENS = 16
RECALLED = MIB // 2  # bytes at a time at most: where more goes than loading brings, no answer ends
SMALL = sorted(name for name in SHAPES if name.startswith("small-"))
PAIRS = list(itertools.product(SMALL, ["q4_0", "q4_k_m", "q8_0", "f16"]))


@contextlib.contextmanager
def recalls_every_few_milliseconds(world: DrivenWorld, largest: int, seed: int) -> Iterator[list[int]]:
    """Recall random amounts up to `largest` bytes from another thread; yields the bytes each brought.

    The first one is over by then: on a busy machine the thread may begin late.
    """
    rng, begun, over, returned = random.Random(seed), threading.Event(), threading.Event(), []

    def recall() -> None:
        while not over.wait(0.003):
            returned.append(world.recall(rng.randrange(1, largest)).returned)
            begun.set()

    thread = threading.Thread(target=recall)
    thread.start()
    try:
        assert begun.wait(60)
        yield returned
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(("shape", "quant"), PAIRS)
def test_output_is_that_of_plain_llama_cpp(library: Library, world: DrivenWorld, shape: str, quant: str):
    source = library.file(shape, quant)
    name = library.add(source, source.stem)
    prompt = PROMPTS[0]
    expected = library.answer(source, prompt, TOKENS)
    assert len(expected) > 0

    assert world.generate(name, prompt, TOKENS).text == expected, "cold"
    warm = world.generate(name, prompt, TOKENS)
    assert warm.text == expected, "warm"
    size = next(model.weights for model in world.status().models if model.name == name)
    world.recall(size // 2)
    assert world.generate(name, prompt, TOKENS).text == expected, "after a recall of half"
    world.recall(None)
    restored = world.generate(name, prompt, TOKENS)
    assert restored.text == expected, "after a recall of everything"
    assert restored.finished.timings.restored_bytes > 0
    with recalls_every_few_milliseconds(world, min(size // 8, RECALLED), seed=len(name)) as returned:
        assert world.generate(name, prompt, TOKENS).text == expected, "during recalls"
    assert any(returned), "no recall took anything"
    world.recall(None)


def test_a_model_larger_than_what_the_os_grants_streams_and_answers_the_same(library: Library):
    source = library.file(dataclasses.replace(SHAPES["small-llama"], name="deep-llama", layers=40), "f16")
    name = library.add(source, "deep-llama")
    expected = library.answer(source, PROMPTS[1], 3)
    with library.open() as world:
        assert world.generate(name, PROMPTS[1], 3).text == expected
        world.recall(None)
        status = next(model for model in world.status().models if model.name == name)
        world.budget = 22 * MIB
        for _ in range(2):
            streamed = world.generate(name, PROMPTS[1], 3)
            assert streamed.text == expected
        assert streamed.finished.timings.restored_bytes > status.weights, "it had room for all weights"


def test_a_budget_in_which_not_even_one_node_can_run_is_refused_and_later_served(library: Library):
    source = library.file("small-qwen2", "q8_0")
    name = library.add(source, "refused")
    expected = library.answer(source, PROMPTS[1], 4)
    with library.open() as world:
        assert world.generate(name, PROMPTS[1], 4).text == expected
        world.recall(None)
        world.budget = world.granted
        with pytest.raises(GrantRefusedError):
            world.generate(name, PROMPTS[1], 4)
        world.budget = None
        assert world.generate(name, PROMPTS[1], 4).text == expected


def test_two_models_in_turn_do_not_disturb_each_other_during_recalls(library: Library, world: DrivenWorld):
    pairs = []
    for shape, quant in (("small-phi3", "q4_0"), ("small-moe", "q8_0")):
        source = library.file(shape, quant)
        pairs.append((library.add(source, f"turn-{shape}"), library.answer(source, PROMPTS[2], 4)))
    with recalls_every_few_milliseconds(world, RECALLED, seed=7):
        for name, expected in pairs * 3:
            assert world.generate(name, PROMPTS[2], 4).text == expected
