"""Products on the NPU: the answer is that of the CPU, whatever becomes of the NPU on the way."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
from tiny_engine import MODEL, Outcome, TinyEngine, Trouble

pytestmark = pytest.mark.engine

PROMPT = list(range(300, 440))
CORPUS = sorted((MODEL.parent / "corpus").glob("[1-8]-*.md"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyEngine]:
    with TinyEngine(tmp_path_factory.mktemp("tiny")) as engine:
        yield engine


@pytest.fixture(scope="module")
def expected(engine: TinyEngine) -> Outcome:
    return engine.on_cpu(PROMPT)


def assert_alike(outcome: Outcome, expected: Outcome) -> None:
    """Each layer quantizes what the one before rounded otherwise: a last bit becomes a step of int8."""
    spread = expected.logits.max() - expected.logits.min()
    assert np.abs(outcome.logits - expected.logits).max() < 0.03 * spread
    assert outcome.logits.argmax() == expected.logits.argmax()


def conversations() -> list[str]:
    """Return what was said in the model's training, in turns of three."""
    turns = []
    for path in CORPUS:
        for entry in re.findall(r"^q: (.*)\n(?:q: .*\n)*a: (.*)$", path.read_text("utf-8"), re.MULTILINE):
            question, answer = entry
            turns.append(
                f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
            )
    return ["".join(turns[start : start + 3]) for start in range(0, 12, 3)]


def test_the_npu_does_the_large_products_and_the_answer_is_the_same(engine: TinyEngine, expected: Outcome):
    outcome = engine.on_npu(PROMPT)
    assert_alike(outcome, expected)
    assert outcome.products >= 15
    assert outcome.fallbacks == outcome.lost == 0


def test_each_product_is_that_of_the_cpu_but_for_the_order_of_summing_up(engine: TinyEngine):
    deviations = engine.deviations(PROMPT)
    assert len(deviations) >= 15
    assert max(deviations) < 2e-6


def test_the_cpu_alone_computes_what_it_always_did(engine: TinyEngine, expected: Outcome):
    engine.on_npu(PROMPT)
    assert np.array_equal(engine.on_cpu(PROMPT).logits, expected.logits)


def test_a_short_prompt_is_left_to_the_cpu(engine: TinyEngine):
    outcome = engine.on_npu(PROMPT[:31])
    assert outcome.jobs == 0
    assert np.array_equal(outcome.logits, engine.on_cpu(PROMPT[:31]).logits)


def test_an_npu_that_does_not_come_costs_nothing(engine: TinyEngine, expected: Outcome):
    outcome = engine.on_npu(PROMPT, willing=False)
    assert outcome.jobs == 0
    assert np.array_equal(outcome.logits, expected.logits)


def test_weights_that_come_back_meanwhile_are_multiplied_as_they_come(engine: TinyEngine, expected: Outcome):
    outcome = engine.evicting(PROMPT)
    assert_alike(outcome, expected)
    assert outcome.products > 0


@pytest.mark.parametrize("at", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("kind", ["lost", "wanted back at once", "wanted back soon", "hung"])
def test_the_cpu_finishes_what_the_npu_began(engine: TinyEngine, expected: Outcome, kind: str, at: int):
    outcome = engine.on_npu(PROMPT, Trouble(kind, at))
    assert_alike(outcome, expected)
    if kind in ("lost", "hung"):
        assert outcome.fallbacks >= 1
        assert outcome.lost == 1


def test_a_slow_npu_is_waited_for(engine: TinyEngine, expected: Outcome):
    outcome = engine.on_npu(PROMPT[:64], delay=0.02)
    assert_alike(outcome, engine.on_cpu(PROMPT[:64]))
    assert outcome.products > 0


def test_text_surprises_the_model_no_more_than_on_the_cpu(engine: TinyEngine):
    on_cpu, on_npu = [], []
    for text in conversations():
        tokens = engine.tokens(text)
        known = max(40, len(tokens) // 2)
        on_cpu.append(engine.surprise(tokens, known, npu=False))
        on_npu.append(engine.surprise(tokens, known, npu=True))
    perplexities = np.exp(np.mean(on_cpu)), np.exp(np.mean(on_npu))
    assert perplexities[1] == pytest.approx(perplexities[0], rel=0.01)
