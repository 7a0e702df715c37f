"""How the trusted application of S-EL0 chooses tokens: as the engine of `linux` does, by the same logits."""

from __future__ import annotations

import functools
import math
import struct
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as trying
from hypothesis import strategies as st
from inner_application import MODEL, QUESTION, Application, checked, provide
from inner_judge import Judge
from inner_models import Opened, no_tokens
from llama_cpp import llama_cpp as lib

from flexserve.emulator.trusted_app import Programs
from flexserve.harness.inner import Image, SealedFile
from flexserve.protocol.sampling import SAMPLERS, LogitBias, SamplerName, Sampling
from flexserve.protocol.trusted_app import Kind
from flexserve.tee_client.messages import Ask, Finish, Status
from flexserve.tee_client.sampling import (
    FLOATS,
    PLACES,
    SETTINGS,
    SIGNED,
    WORDS,
    Choice,
    admitted,
    said,
    settings,
)
from flexserve.trusted.engine import runtime
from flexserve.trusted.engine.sampler import Sampler, log_probabilities
from flexserve.trusted.engine.vocabulary import Vocabulary

MOST = 12  # tokens
# The demo's model is sure of itself: heat comes first, so that there is something to choose.
WARM_FIRST: list[SamplerName] = ["temperature", *(name for name in SAMPLERS if name != "temperature")]
warm = functools.partial(Sampling, temperature=3.0, samplers=WARM_FIRST, seed=7)


@pytest.fixture(scope="module")
def vocabulary() -> Iterator[Vocabulary]:
    """The demo's model, as `linux` knows its tokens."""
    lib.llama_log_set(runtime._silent, None)
    parameters = lib.llama_model_default_params()
    parameters.vocab_only = True
    model = lib.llama_model_load_from_file(str(MODEL).encode(), parameters)
    holder: Any = types.SimpleNamespace(
        vocabulary=lib.llama_model_get_vocab(model), header=types.SimpleNamespace(metadata={})
    )
    yield Vocabulary(holder)
    lib.llama_model_free(model)


@pytest.fixture(scope="module")
def application(emulator: str, programs: Programs, sealed: SealedFile, image: Image) -> Iterator[Opened]:
    """The demo's model with its weights, in the checked application."""
    app = Application(checked(emulator, programs))
    provide(app)
    model = Opened(app, sealed)
    model.load(image)
    yield model
    app.end()


@pytest.fixture
def talking(application: Opened) -> Opened:
    """The same without KV: what is computed with less at once has other logits, by a little."""
    application.do(Ask.EVICT, Kind.KV)
    return application


# ---- which token ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0),
        Sampling(seed=7),
        warm(samplers=["top_k", "temperature"], top_k=5),
        warm(samplers=["temperature", "top_p", "min_p"], top_p=0.7, min_keep=3),
        warm(samplers=["typ_p", "top_n_sigma", "temperature"], typical_p=0.8, top_n_sigma=1.5),
        warm(xtc_probability=0.7, xtc_threshold=0.05),
        warm(dynatemp_range=1.5, dynatemp_exponent=0.7),
        warm(repeat_penalty=1.5, frequency_penalty=0.4, presence_penalty=-0.3, repeat_last_n=-1),
        warm(dry_multiplier=2.0, dry_allowed_length=1, dry_sequence_breakers=["e", "\n"]),
        Sampling(temperature=0, repeat_penalty=3.0, frequency_penalty=2.0, dry_multiplier=3.0, top_k=3),
        Sampling(temperature=0, samplers=["penalties", "min_p", "dry"], repeat_penalty=2.0, seed=9),
        warm(mirostat=1, mirostat_tau=3.0),
        warm(mirostat=2, mirostat_eta=0.3),
        warm(logit_bias=[LogitBias("memory", 4.0), LogitBias(30, None), LogitBias(31, -2.5)], top_k=0),
        warm(ignore_eos=True, min_tokens=8, stop_token_ids=[*range(40, 90)]),
    ],
)
def test_by_the_same_logits_it_chooses_what_the_engine_of_linux_chooses(
    talking: Opened, judge: Judge, vocabulary: Vocabulary, sampling: Sampling
) -> None:
    prompt = talking.tokenise(QUESTION)
    encode = functools.partial(vocabulary.encode, special=False, start=False)
    answer = talking.answer(prompt, most=MOST, sampling=settings(sampling, encode))
    sampler = Sampler(sampling, vocabulary, prompt, talking.context)
    for row, token in zip(judge.logits(MODEL, prompt, answer), [*answer, None], strict=True):
        chosen = sampler.choose(row)
        if token is None:
            ended = vocabulary.ends(chosen) or chosen in sampling.stop_token_ids
            assert ended or len(answer) == MOST
            break
        assert chosen == token
        sampler.accept(token)
    sampler.close()
    if sampling.min_tokens:
        assert len(answer) >= sampling.min_tokens


def test_a_seed_that_is_not_given_is_another_one_each_time(talking: Opened) -> None:
    hot = settings(Sampling(temperature=5.0, samplers=["temperature"]), talking.tokenise)
    answers = [tuple(talking.answer(talking.tokenise(QUESTION), most=MOST, sampling=hot)) for _ in range(4)]
    assert len(set(answers)) > 1


def test_a_token_is_one_of_those_that_are_admitted(
    talking: Opened, judge: Judge, vocabulary: Vocabulary
) -> None:
    prompt, allowed = talking.tokenise(QUESTION), [*range(50, 60)]
    talking.begin(prompt, most=4, sampling=settings(Sampling(temperature=0), talking.tokenise))
    for _ in range(3):
        talking.do(Ask.ADMIT, 0, payload=admitted(allowed, vocabulary.size))
        talking.step(0)
    answer = talking.rest().tokens
    rows = judge.logits(MODEL, prompt, answer[:-1])
    assert answer[:3] == [allowed[int(row[allowed].argmax())] for row in rows[:3]]
    assert answer[3] == int(rows[3].argmax())  # it was said for one token each time


def test_a_text_that_is_complete_ends_whatever_else_was_asked_for(
    talking: Opened, vocabulary: Vocabulary
) -> None:
    never_ending = settings(Sampling(temperature=0, ignore_eos=True), talking.tokenise)
    talking.begin(talking.tokenise(QUESTION), sampling=never_ending)
    talking.do(Ask.ADMIT, 0, payload=admitted(vocabulary.endings, vocabulary.size))
    assert talking.step(0)[0].finished is Finish.STOP
    talking.do(Ask.END, 0)


def test_where_no_token_is_left_it_ends(talking: Opened, vocabulary: Vocabulary) -> None:
    talking.begin(talking.tokenise(QUESTION))
    talking.do(Ask.ADMIT, 0, payload=admitted([], vocabulary.size))
    assert talking.step(0)[0].finished is Finish.STUCK
    talking.do(Ask.END, 0)


# ---- what is told of it --------------------------------------------------------------------------


def test_log_probabilities_are_those_of_plain_llama_cpp(talking: Opened, judge: Judge) -> None:
    prompt = talking.tokenise(QUESTION)
    talking.begin(prompt, most=5, sampling=settings(Sampling(temperature=0, logprobs=3), talking.tokenise))
    answered = talking.rest(logprobs=3)
    for row, token, (own, likeliest) in zip(
        judge.logits(MODEL, prompt, answered.tokens[:-1]), answered.tokens, answered.scores, strict=True
    ):
        scores = log_probabilities(row)
        assert own.token == token
        assert own.value == pytest.approx(scores[token], abs=1e-5)
        assert [each.token for each in likeliest] == list(np.argsort(-scores, kind="stable")[:3])
        assert [each.value for each in likeliest] == pytest.approx(np.sort(scores)[::-1][:3], abs=1e-5)


def test_what_the_samplers_left_is_told_as_the_engine_of_linux_tells_it(
    talking: Opened, judge: Judge, vocabulary: Vocabulary
) -> None:
    prompt, sampling = talking.tokenise(QUESTION), warm(top_k=4, logprobs=20, after_samplers=True)
    talking.begin(prompt, most=5, sampling=settings(sampling, talking.tokenise))
    answered = talking.rest(logprobs=20)
    sampler = Sampler(sampling, vocabulary, prompt, talking.context)
    for row, token, (own, likeliest) in zip(
        judge.logits(MODEL, prompt, answered.tokens[:-1]), answered.tokens, answered.scores, strict=True
    ):
        assert sampler.choose(row) == own.token == token
        left = sampler.left()
        assert [each.token for each in likeliest] == [other for other, _ in left]
        assert [each.value for each in likeliest] == pytest.approx([score for _, score in left], abs=1e-4)
        sampler.accept(token)
    sampler.close()


def test_scores_are_told_once(talking: Opened) -> None:
    talking.begin(talking.tokenise(QUESTION), sampling=settings(Sampling(logprobs=0), talking.tokenise))
    talking.step(0)
    first = said(talking.do(Ask.SAID, 0), 0)
    assert len(first.tokens) == len(first.scores) == 1
    assert said(talking.do(Ask.SAID, 0), 0).tokens == []
    talking.do(Ask.END, 0)


# ---- what it refuses -----------------------------------------------------------------------------


def changed(**values: float | bytes) -> bytes:
    """Return settings of which some numbers are others."""
    plain = SETTINGS.unpack(settings(Sampling(dry_sequence_breakers=[]), no_tokens))
    usual = dict(zip((*WORDS, *SIGNED, *FLOATS, "samplers"), plain, strict=True))
    return SETTINGS.pack(*{**usual, **values}.values())


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        bytes(SETTINGS.size - 1),
        *(changed(**{name: value}) for name in FLOATS for value in (math.nan, math.inf, -1e30, 1e30)),
        *(changed(**{name: -2}) for name in SIGNED if name != "top_k"),
        changed(samplers=bytes([Choice.ANY, 99])),
        changed(logprobs=22),
        changed(biases=1),  # which does not come
        changed(biases=(1 << 32) - 1),
        changed(biases=1) + struct.pack("<If", 1 << 31, 1.0),
        changed(biases=1) + struct.pack("<If", 1, math.nan),
        changed(biases=1) + struct.pack("<If", 1, 1e30),
        changed() + b"no end",
        changed() + b"x\0" * 17,
        changed() + bytes(1 << 20),
    ],
)
def test_settings_that_are_none_change_nothing(talking: Opened, payload: bytes) -> None:
    talking.begin(talking.tokenise(QUESTION))
    assert talking.app.ask(Ask.SAMPLING, 0, 0, payload=payload).status is Status.BAD
    assert talking.step(0)[0].said == 1
    assert (
        talking.app.ask(Ask.SAMPLING, 0, 0, payload=changed()).status is Status.BAD
    )  # it has begun to speak
    talking.do(Ask.END, 0)


def test_masks_of_another_size_and_of_nobody_are_refused(talking: Opened, vocabulary: Vocabulary) -> None:
    mask = admitted([1], vocabulary.size)
    assert talking.app.ask(Ask.ADMIT, 0, 0, payload=mask).status is Status.BAD  # it has not begun
    talking.begin(talking.tokenise(QUESTION))
    for payload in (b"", mask[:-1], mask + b"\0"):
        assert talking.app.ask(Ask.ADMIT, 0, 0, payload=payload).status is Status.BAD
    talking.do(Ask.END, 0)


NUMBERS = st.one_of(st.floats(width=32), st.floats(0, 1, width=32), st.sampled_from([0.0, 1e-45, 100.0, 1.0]))


@st.composite
def random_settings(draw: st.DrawFn) -> bytes:
    """Settings of which most are valid, many of them extreme."""
    samplers = bytes(draw(st.lists(st.integers(0, max(Choice) + 1), max_size=PLACES)))
    words = {
        "logprobs": draw(st.integers(0, 22)),
        "after_samplers": draw(st.integers(0, 2)),
        "ignore_eos": draw(st.integers(0, 1)),
        "min_keep": draw(st.integers(0, (1 << 32) - 1)),
        "min_tokens": draw(st.integers(0, 5)),
        "biases": (biases := draw(st.integers(0, 3))),
        "seed": draw(st.integers(0, (1 << 32) - 1)),
    }
    signed = {name: draw(st.integers(-2, (1 << 31) - 1)) for name in SIGNED}
    floats = {name: draw(st.just(0.5) | NUMBERS) for name in FLOATS}
    lists = b"".join(struct.pack("<If", draw(st.integers(0, 400)), draw(NUMBERS)) for _ in range(biases))
    return changed(samplers=samplers, **words, **signed, **floats) + lists + draw(st.binary(max_size=20))


HOT = bytes([Choice.TEMPERATURE, Choice.DRY, Choice.TOP_K, Choice.TYP_P, Choice.ANY])
INFINITE = {"temperature": 1e-44, "dry_multiplier": 100.0, "dry_base": 100.0, "dry_allowed_length": 0}


@trying(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payload=random_settings())
@example(changed(**INFINITE, dry_penalty_last_n=-1, samplers=HOT))
def test_whatever_the_settings_are_it_answers(talking: Opened, payload: bytes) -> None:
    talking.begin([5, 6, 7, 5, 6, 7, 5, 6], most=3)
    status = talking.app.ask(Ask.SAMPLING, 0, 0, payload=payload).status
    assert status in (Status.DONE, Status.BAD)
    while talking.step(0)[0].finished is Finish.NO:
        pass
    talking.do(Ask.SAID, 0)
    talking.do(Ask.END, 0)
