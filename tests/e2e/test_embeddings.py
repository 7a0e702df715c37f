"""Vectors of a real secure world: those of plain llama.cpp, whatever happens to the memory."""

from __future__ import annotations

import os
from collections.abc import Iterator

import llama_cpp
import numpy as np
import pytest
from library import Library
from numpy.typing import NDArray

from flexserve.errors import CallerError, CancelledError, GrantRefusedError
from flexserve.harness.worlds import DrivenWorld
from flexserve.units import MIB

pytestmark = pytest.mark.engine

TEXTS = ["Kato bime wurafo.", "Zi lo mera? Tuvo, kane pi sura; dolo.", "Kato bime. " * 60]


@pytest.fixture(scope="module")
def model(library: Library) -> str:
    return library.add(library.file("small-llama", "f16"), "embedder")


@pytest.fixture(scope="module")
def world(library: Library, model: str) -> Iterator[DrivenWorld]:
    with library.open(context=1024) as world:
        yield world


def result(world: DrivenWorld, number: int) -> NDArray[np.float32]:
    """Return the vectors of a request."""
    return np.array([np.frombuffer(vector, "<f4") for vector in world.vectors(number)])


def embed(world: DrivenWorld, model: str, texts: list[str]) -> NDArray[np.float32]:
    return result(world, world.start_embedding(model, texts))


@pytest.fixture(scope="module")
def expected(library: Library) -> NDArray[np.float32]:
    plain = llama_cpp.Llama(
        str(library.file("small-llama", "f16")),
        embedding=True,
        n_ctx=1024,
        n_batch=1024,
        n_ubatch=1024,
        n_threads=1,
        pooling_type=llama_cpp.LLAMA_POOLING_TYPE_MEAN,
        verbose=False,
    )
    return np.array([plain.embed(text, normalize=True) for text in TEXTS], np.float32)


def test_vectors_are_those_of_plain_llama_cpp(
    world: DrivenWorld, model: str, expected: NDArray[np.float32]
) -> None:
    found = embed(world, model, TEXTS)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert np.allclose(found, expected, atol=2e-3)


def test_they_are_the_same_after_a_recall_and_leave_no_memory_behind(world: DrivenWorld, model: str) -> None:
    before = embed(world, model, TEXTS)
    world.recall(None)
    assert (world.granted, world.status().memory.secure) == (0, 0)
    assert np.array_equal(embed(world, model, TEXTS), before)
    world.recall(None)
    assert (world.granted, world.status().memory.secure) == (0, 0)


def test_a_text_that_does_not_fit_is_the_callers_mistake_and_nobody_elses(
    world: DrivenWorld, model: str
) -> None:
    with pytest.raises(CallerError):
        embed(world, model, ["Kato bime wurafo. " * 500])
    (status,) = [one for one in world.status().models if one.name == model]
    assert status.error is None
    assert len(embed(world, model, ["Kato."])) == 1


def test_a_request_can_be_cancelled_between_two_texts(world: DrivenWorld, model: str) -> None:
    number = world.start_embedding(model, ["Kato bime wurafo. " * 20] * 500)
    world.cancel(number)
    with pytest.raises(CancelledError):
        result(world, number)


def test_text_is_generated_as_ever_after_vectors(library: Library, world: DrivenWorld, model: str) -> None:
    answer = library.answer(library.file("small-llama", "f16"), "Once.", 8)
    embed(world, model, TEXTS[:1])
    assert world.generate(model, "Once.", 8).text == answer


def test_too_little_memory_is_refused_and_survived(library: Library, model: str) -> None:
    with library.open(context=1024, budget=2 * MIB) as world:
        with pytest.raises(GrantRefusedError):
            embed(world, model, TEXTS)
        world.budget = None
        assert len(embed(world, model, TEXTS)) == len(TEXTS)
        world.recall(None)
        assert world.granted == 0


def test_vectors_are_right_when_the_image_turns_out_to_be_damaged(
    library: Library, world: DrivenWorld, model: str, expected: NDArray[np.float32]
):
    world.recall(None)
    with library.store.open(model) as sealed:
        (image,) = library.store.derived.images(sealed.manifest)
    size = image.stat().st_size
    os.truncate(image, size // 2)
    assert np.allclose(embed(world, model, TEXTS), expected, atol=2e-3)
    with library.store.open(model) as sealed:
        (image,) = library.store.derived.images(sealed.manifest)
    assert image.stat().st_size == size
