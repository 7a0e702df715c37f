"""Who watches answers pass: what a classifier makes of sizes and times."""

from __future__ import annotations

import random

import pytest

from flexserve.bench.classifier import PIECES, Accuracy, Trace, prompt_of, table, told_apart

ANSWERS = [question for question in range(3) for _ in range(10)]
TREES = 30  # enough for what is this plain; the benchmark has more


def trace(rng: random.Random, sizes: list[int]) -> Trace:
    return Trace(1000, [(0.02 * number + rng.random() / 100, size) for number, size in enumerate(sizes)])


def test_answers_of_other_sizes_are_told_apart_and_equal_ones_are_not():
    pytest.importorskip("sklearn", reason="scikit-learn is of the extra bench: make setup")
    rng = random.Random(1)
    open_ones = [trace(rng, [30 + 9 * question, 40, 90 - 9 * question]) for question in ANSWERS]
    sealed_ones = [trace(rng, [1024, 1024, 4096]) for _ in ANSWERS]
    assert told_apart(open_ones, ANSWERS, TREES).right > 0.9 * len(ANSWERS)
    low, high = told_apart(sealed_ones, ANSWERS, TREES).interval
    assert low < 1 / 3 < high


def test_an_interval_is_wilsons():
    assert Accuracy(10, 100).interval == pytest.approx((0.0552, 0.1744), abs=1e-4)
    assert Accuracy(0, 10).interval[0] == pytest.approx(0)


@pytest.mark.parametrize("pieces", [1, PIECES, PIECES + 9])
def test_every_answer_has_as_many_features(pieces: int):
    found = trace(random.Random(2), [1024] * pieces).features()
    assert len(found) == 4 + 2 * PIECES
    assert found[1] == pieces


def test_questions_are_equally_long_and_differ():
    assert len({tuple(prompt_of(question)) for question in range(10)}) == 10
    assert {len(prompt_of(question)) for question in range(10)} == {32}


def test_the_table_says_how_many_and_how_sure():
    assert "| sealed | 10.0% | 5.5% to 17.4% | 100 |" in table({"sealed": Accuracy(10, 100)})
