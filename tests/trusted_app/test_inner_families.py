"""Families of models in the trusted application of S-EL0, judged by plain llama.cpp."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from inner_application import MODEL, QUESTION, Start, provide
from inner_judge import Judge
from inner_models import Made, Opened, no_tokens

from flexserve.harness.inner import Image, SealedFile
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.trusted_app import Kind
from flexserve.tee_client.messages import Ask, Status, packed
from flexserve.tee_client.sampling import settings
from flexserve.trusted.engine.sampler import log_probabilities

PROMPT = [5, 17, 40, 41, 42, 17, 40, 99, 100, 7, 8, 9]
LONG = [(7 * each) % 150 + 3 for each in range(90)]
MEAN, CLS, LAST, RANK = 1, 2, 3, 4


@pytest.mark.parametrize(
    "architecture",
    ["qwen3", "gemma3", "mamba", "jamba", "qwen3next", "qwen2moe", "deepseek2"],
    ids=["dense", "windows", "recurrent", "hybrid", "delta-net", "experts", "latent"],
)
def test_a_family_has_the_log_probabilities_of_plain_llama_cpp(
    made: Made, judge: Judge, tmp_path: Path, architecture: str
) -> None:
    model = made(architecture)
    for prompt in (PROMPT, LONG):
        model.begin(
            prompt, most=8, sampling=settings(Sampling(seed=3, logprobs=0, ignore_eos=True), no_tokens)
        )
        answered = model.rest(logprobs=0)
        rows = judge.logits(tmp_path / "model.gguf", prompt, answered.tokens[:-1])
        expected = [log_probabilities(row)[token] for row, token in zip(rows, answered.tokens, strict=True)]
        assert [own.value for own, _ in answered.scores] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("architecture", "pooling"),
    [
        ("bert", MEAN),
        ("bert", CLS),
        ("modern-bert", MEAN),
        ("gemma-embedding", MEAN),
        ("qwen3", LAST),
        ("bert", RANK),
    ],
)
def test_a_family_makes_the_vectors_of_plain_llama_cpp(
    made: Made, judge: Judge, tmp_path: Path, architecture: str, pooling: int
) -> None:
    model = made(architecture, {"pooling_type": pooling})
    for text in (PROMPT, LONG):
        expected = judge.vector(tmp_path / "model.gguf", text, pooling)
        assert model.embed(text, ranks=pooling == RANK) == pytest.approx(list(expected), rel=1e-3, abs=1e-4)


# ---- vectors -------------------------------------------------------------------------------------


def test_a_model_that_generates_makes_vectors_too(loaded: Opened, judge: Judge) -> None:
    text = loaded.tokenise(QUESTION)
    expected = judge.vector(MODEL, text, MEAN)
    assert loaded.embed(text) == pytest.approx(list(expected), rel=1e-2, abs=1e-3)
    parts = np.array(loaded.embed(text, at_once=7))  # of texts that are longer than a graph
    assert parts == pytest.approx(np.array(loaded.embed(text)), rel=1e-1, abs=2e-2)


def test_a_vector_disturbs_no_conversation(loaded: Opened) -> None:
    prompt = loaded.tokenise(QUESTION)
    undisturbed = loaded.answer(prompt, most=8)
    before = loaded.app.do(Ask.POOL).values[0]
    loaded.begin(prompt, most=8, sequence=1)
    loaded.step(1)
    loaded.embed(prompt)
    assert loaded.rest(1).tokens == undisturbed
    assert loaded.app.do(Ask.POOL).values[0] == before  # what it took is unused again


def test_a_vector_waits_for_memory_and_for_weights(start: Start, sealed: SealedFile, image: Image) -> None:
    app = start()
    provide(app, chunks=len(image.chunks))
    model = Opened(app, sealed)
    model.load(image)
    refused = app.ask(Ask.EMBED, 0, 0, 512, payload=packed(PROMPT))
    assert refused.status is Status.REFUSED
    assert refused.values[0] > 0
    assert app.do(Ask.POOL).values[0] == 0
    vector = model.embed(PROMPT)
    model.do(Ask.EVICT, Kind.WEIGHTS, 0, model.chunks)
    missing = app.ask(Ask.EMBED, 0, 0, 512, payload=packed(PROMPT))
    assert missing.status is Status.MISSING
    assert missing.values[0] > 0
    model.load(image)
    assert model.embed(PROMPT) == vector


def test_memory_stays_while_a_vector_is_computed(loaded: Opened, image: Image) -> None:
    text, app = loaded.tokenise(QUESTION * 4), loaded.app
    expected = loaded.embed(text)
    asked = app.send(Ask.EMBED, 0, 0, 512, payload=packed(text))
    others = [app.send(Ask.EVICT, 0, kind) for kind in (Kind.SCRATCH, Kind.KV)]
    busy = app.send(Ask.CLOSE, 0)
    answers = dict(app.receive() for _ in range(4))
    statuses = [answers[tag].status for tag in (*others, busy)]
    assert statuses == [Status.BAD, Status.BAD, Status.BUSY]
    assert answers[asked].status is Status.DONE
    loaded.load(image)
    assert loaded.embed(text) == expected


def test_a_model_that_ranks_makes_no_vectors_and_others_no_ranks(loaded: Opened, made: Made) -> None:
    ranks = made("bert", {"pooling_type": RANK})
    for model, asked in ((ranks, 0), (loaded, 1)):
        assert model.app.ask(Ask.EMBED, 0, asked, 512, payload=packed(PROMPT)).status is Status.FAILED


@pytest.mark.parametrize("architecture", ["bert", "t5encoder"])
def test_an_encoder_says_nothing(made: Made, architecture: str) -> None:
    model = made(architecture)
    began = model.app.ask(Ask.BEGIN, 0, 0, 5, payload=packed(PROMPT))
    assert began.status is Status.UNSUPPORTED
