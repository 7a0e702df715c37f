"""How tokens are chosen: as plain llama.cpp's samplers would, by the same seed and logits."""

from __future__ import annotations

import ctypes
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp import llama_cpp as lib
from numpy.typing import NDArray

from flexserve.errors import CallerError
from flexserve.protocol.sampling import SAMPLERS, LogitBias, Sampling
from flexserve.trusted.engine import runtime
from flexserve.trusted.engine.sampler import Sampler
from flexserve.trusted.engine.vocabulary import Vocabulary
from flexserve.trusted.text.constraint import OPTIONS, answer_rule
from flexserve.trusted.text.grammar import Confinement

TINY = Path(__file__).parents[2] / "models" / "tiny" / "flexserve-tiny.gguf"
CONTEXT = 64
STEPS = 24
SEED = 7


@pytest.fixture(scope="module")
def vocabulary() -> Iterator[Vocabulary]:
    lib.llama_log_set(runtime._silent, None)
    parameters = lib.llama_model_default_params()
    parameters.vocab_only = True
    model = lib.llama_model_load_from_file(str(TINY).encode(), parameters)
    holder: Any = types.SimpleNamespace(
        vocabulary=lib.llama_model_get_vocab(model), header=types.SimpleNamespace(metadata={})
    )
    yield Vocabulary(holder)
    lib.llama_model_free(model)


def logits_of(step: int, size: int, spread: float = 3.0) -> NDArray[np.float32]:
    """Return logits of a model that likes the same tokens again and again."""
    usual = np.random.default_rng(1).normal(0, spread, size)
    return (usual + np.random.default_rng(100 + step).normal(0, 1, size)).astype(np.float32)


def chosen(
    vocabulary: Vocabulary, sampling: Sampling, prompt: Sequence[int] = (), steps: int = STEPS
) -> list[int]:
    """Return the tokens that are chosen one after the other."""
    sampler = Sampler(sampling, vocabulary, prompt, CONTEXT)
    tokens = []
    for step in range(steps):
        tokens.append(sampler.choose(logits_of(step, vocabulary.size)))
        sampler.accept(tokens[-1])
    sampler.close()
    return tokens


class Plain:
    """llama.cpp's own chain, with each of its samplers, whether it changes anything or not."""

    def __init__(self, vocabulary: Vocabulary, sampling: Sampling) -> None:
        self.size = vocabulary.size
        self.chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for sampler in self._samplers(vocabulary, sampling):
            lib.llama_sampler_chain_add(self.chain, sampler)

    def _samplers(self, vocabulary: Vocabulary, s: Sampling) -> Iterator[Any]:
        seed = s.seed
        if s.mirostat:
            yield lib.llama_sampler_init_temp(s.temperature)
            if s.mirostat == 1:
                yield lib.llama_sampler_init_mirostat(self.size, seed, s.mirostat_tau, s.mirostat_eta, 100)
            else:
                yield lib.llama_sampler_init_mirostat_v2(seed, s.mirostat_tau, s.mirostat_eta)
            return
        texts = [text.encode() for text in s.dry_sequence_breakers]
        breakers = (ctypes.c_char_p * len(texts))(*texts)
        dry_window = CONTEXT if s.dry_penalty_last_n == -1 else s.dry_penalty_last_n
        made = {
            "penalties": lambda: lib.llama_sampler_init_penalties(
                *(self.size, s.repeat_last_n, s.repeat_penalty, s.frequency_penalty, s.presence_penalty)
            ),
            "dry": lambda: lib.llama_sampler_init_dry(
                *(vocabulary.address, s.dry_multiplier, s.dry_base, s.dry_allowed_length, dry_window),
                *(breakers, len(texts)),
            ),
            "top_n_sigma": lambda: lib.llama_sampler_init_top_n_sigma(s.top_n_sigma),
            "top_k": lambda: lib.llama_sampler_init_top_k(s.top_k),
            "typ_p": lambda: lib.llama_sampler_init_typical(s.typical_p, s.min_keep),
            "top_p": lambda: lib.llama_sampler_init_top_p(s.top_p, s.min_keep),
            "min_p": lambda: lib.llama_sampler_init_min_p(s.min_p, s.min_keep),
            "xtc": lambda: lib.llama_sampler_init_xtc(s.xtc_probability, s.xtc_threshold, s.min_keep, seed),
            "temperature": lambda: lib.llama_sampler_init_temp_ext(
                s.temperature, s.dynatemp_range, s.dynatemp_exponent
            ),
        }
        for name in s.samplers:
            yield made[name]()
        yield lib.llama_sampler_init_dist(seed)

    def run(self, prompt: Sequence[int], steps: int = STEPS) -> list[int]:
        for token in prompt:
            lib.llama_sampler_accept(self.chain, token)
        tokens = []
        for step in range(steps):
            logits = logits_of(step, self.size)
            data = (lib.llama_token_data * self.size)(
                *(lib.llama_token_data(token, float(logits[token]), 0.0) for token in range(self.size))
            )
            array = lib.llama_token_data_array(data, self.size, -1, False)
            lib.llama_sampler_apply(self.chain, ctypes.byref(array))
            tokens.append(int(array.data[array.selected].id))
            lib.llama_sampler_accept(self.chain, tokens[-1])
        lib.llama_sampler_free(self.chain)
        return tokens


USUAL = Sampling(seed=SEED)
OPEN = Sampling(seed=SEED, top_k=0, top_p=1, min_p=0, temperature=1.0)  # every sampler changes something
CHANGES: dict[str, tuple[Any, ...]] = {
    "temperature": (0.2, 3.0, 0),
    "dynatemp_range": (0.9,),
    "top_k": (2,),
    "top_p": (0.2,),
    "min_p": (0.4,),
    "typical_p": (0.2,),
    "top_n_sigma": (0.5,),
    "xtc_probability": (1.0,),
    "repeat_penalty": (3.0,),
    "frequency_penalty": (5.0,),
    "presence_penalty": (9.0,),
    "dry_multiplier": (50.0,),
    "mirostat": (1, 2),
    "seed": (8, 1 << 40, (1 << 63) - 1),
}
DEPENDENT: dict[str, tuple[dict[str, Any], Any]] = {
    "dynatemp_exponent": ({"dynatemp_range": 0.9}, 9.0),
    "min_keep": ({"top_p": 0.05}, 30),
    "xtc_threshold": ({"xtc_probability": 1.0}, 0.01),
    "repeat_last_n": ({"presence_penalty": 9.0}, 2),
    "dry_base": ({"dry_multiplier": 0.8, "dry_allowed_length": 0}, 9.0),
    "dry_allowed_length": ({"dry_multiplier": 50.0}, 0),
    "dry_penalty_last_n": ({"dry_multiplier": 50.0, "dry_allowed_length": 0}, 3),
    "mirostat_tau": ({"mirostat": 2}, 0.5),
    "mirostat_eta": ({"mirostat": 2, "mirostat_tau": 1.0}, 5.0),
    "samplers": ({"top_k": 2, "presence_penalty": 9.0}, ["temperature", "top_k"]),
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, one) for field, many in CHANGES.items() for one in many]
)
def test_a_field_changes_what_llama_cpp_would_change(vocabulary: Vocabulary, field: str, value: Any) -> None:
    changed = msgspec.structs.replace(OPEN, **{field: value})
    of_llama = msgspec.structs.replace(changed, seed=min(changed.seed or 0, SEED + 1))
    found = chosen(vocabulary, changed)
    assert found != chosen(vocabulary, OPEN)
    if field != "seed":
        assert found == Plain(vocabulary, of_llama).run([])


@pytest.mark.parametrize("field", DEPENDENT)
def test_a_field_of_a_sampler_changes_what_llama_cpp_would_change(vocabulary: Vocabulary, field: str) -> None:
    beside, value = DEPENDENT[field]
    usual = msgspec.structs.replace(OPEN, **beside)
    changed = msgspec.structs.replace(usual, **{field: value})
    prompt = [5, 6, 7, 8] * 6
    found = chosen(vocabulary, changed, prompt)
    assert found != chosen(vocabulary, usual, prompt)
    assert found == Plain(vocabulary, changed).run(prompt)


def test_every_field_of_a_sampler_is_tried() -> None:
    others = {"max_tokens", "min_tokens", "ignore_eos", "stop", "stop_token_ids", "logit_bias"}
    others |= {"schema", "grammar", "logprobs", "after_samplers", "echo", "dry_sequence_breakers"}
    others |= {"shift", "n_keep", "n_discard"}  # of a full context
    assert {*CHANGES, *DEPENDENT, *others} == set(Sampling.__struct_fields__)


@pytest.mark.parametrize(
    "samplers",
    [["temperature", "penalties"], ["top_n_sigma", "penalties", "temperature"], ["dry", "temperature"]],
)
def test_the_order_of_samplers_counts_for_the_likeliest_token_too(
    vocabulary: Vocabulary, samplers: list[Any]
) -> None:
    likeliest: Any = {"temperature": 0.0, "repeat_penalty": 2.0, "top_n_sigma": 0.0, "dry_multiplier": 9.0}
    sampling = Sampling(seed=SEED, samplers=samplers, dry_allowed_length=0, **likeliest)
    assert chosen(vocabulary, sampling, [860], 6) == Plain(vocabulary, sampling).run([860], 6)


@settings(max_examples=60)
@given(
    st.builds(
        Sampling,
        seed=st.integers(0, (1 << 32) - 2),
        samplers=st.permutations(SAMPLERS).flatmap(
            lambda order: st.integers(0, len(order)).map(lambda size: order[:size])
        ),
        temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        dynatemp_range=st.sampled_from([0.0, 0.3]),
        top_k=st.sampled_from([0, 1, 5, 40]),
        top_p=st.floats(0, 1),
        min_p=st.floats(0, 1),
        typical_p=st.sampled_from([0.3, 1.0]),
        top_n_sigma=st.sampled_from([-1.0, 0.0, 1.0]),
        min_keep=st.sampled_from([0, 1, 7]),
        xtc_probability=st.sampled_from([0.0, 0.5]),
        repeat_last_n=st.integers(0, 80).map(lambda count: min(count, CONTEXT)),
        repeat_penalty=st.floats(0.5, 2),
        frequency_penalty=st.floats(-2, 2),
        presence_penalty=st.floats(-2, 2),
        dry_multiplier=st.sampled_from([0.0, 0.8]),
        mirostat=st.sampled_from([0, 0, 1, 2]),
    ),
    st.lists(st.integers(0, 300), max_size=100),
)
def test_whatever_is_asked_for_is_what_llama_cpp_does(
    vocabulary: Vocabulary, sampling: Sampling, prompt: list[int]
) -> None:
    assert chosen(vocabulary, sampling, prompt, 6) == Plain(vocabulary, sampling).run(prompt, 6)


def test_without_a_seed_answers_differ(vocabulary: Vocabulary) -> None:
    hot = msgspec.structs.replace(OPEN, seed=None, temperature=3.0)
    assert chosen(vocabulary, hot) != chosen(vocabulary, hot)


def test_sequences_end_at_their_breakers(vocabulary: Vocabulary) -> None:
    dry = msgspec.structs.replace(OPEN, temperature=0.0, dry_multiplier=50.0, dry_allowed_length=1)
    texts = [vocabulary.piece(token).decode(errors="replace") for token in chosen(vocabulary, dry)]
    broken = msgspec.structs.replace(dry, dry_sequence_breakers=[text for text in texts if text][:16])
    assert chosen(vocabulary, broken) != chosen(vocabulary, dry)
    assert chosen(vocabulary, broken) == Plain(vocabulary, broken).run([])


@pytest.mark.parametrize("meant", ["number", "text"])
def test_a_bias_moves_a_token_and_null_takes_it_away(vocabulary: Vocabulary, meant: str) -> None:
    greedy = Sampling(temperature=0.0)
    (usual,) = chosen(vocabulary, greedy, steps=1)
    order = np.argsort(-logits_of(0, vocabulary.size))
    token: int | str = usual
    if meant == "text":
        text = vocabulary.piece(usual).decode()
        assert usual in vocabulary.encode(text, special=False, start=False)
        token = text
    never = msgspec.structs.replace(greedy, logit_bias=[LogitBias(token, None)])
    assert chosen(vocabulary, never, steps=1) == [order[1]]
    less = msgspec.structs.replace(greedy, logit_bias=[LogitBias(token, -100.0)])
    assert chosen(vocabulary, less, steps=1) == [order[1]]
    more = msgspec.structs.replace(greedy, logit_bias=[LogitBias(int(order[9]), 50.0)])
    assert chosen(vocabulary, more, steps=1) == [order[9]]


def test_a_bias_of_a_token_that_there_is_not_is_the_callers_mistake(vocabulary: Vocabulary) -> None:
    for bias in (None, 1.0):
        with pytest.raises(CallerError, match="no token"):
            Sampler(Sampling(logit_bias=[LogitBias(vocabulary.size, bias)]), vocabulary, [], CONTEXT)


def ending_first(vocabulary: Vocabulary) -> NDArray[np.float32]:
    logits = logits_of(0, vocabulary.size)
    logits[vocabulary.endings] = 90
    return logits


def test_no_ending_comes_where_endings_are_ignored(vocabulary: Vocabulary) -> None:
    logits = ending_first(vocabulary)
    usual = Sampler(USUAL, vocabulary, [], CONTEXT)
    assert usual.choose(logits) in vocabulary.endings
    ignoring = Sampler(msgspec.structs.replace(USUAL, ignore_eos=True), vocabulary, [], CONTEXT)
    for _ in range(20):
        assert ignoring.choose(logits) not in vocabulary.endings


def test_the_first_tokens_end_nothing_where_so_many_are_wanted(vocabulary: Vocabulary) -> None:
    logits = ending_first(vocabulary)
    logits[9] = 91
    sampling = Sampling(temperature=0.0, min_tokens=3, stop_token_ids=[9])
    sampler = Sampler(sampling, vocabulary, [], CONTEXT)
    for _ in range(3):
        token = sampler.choose(logits)
        assert token not in {9, *vocabulary.endings}
        sampler.accept(token)
    assert sampler.choose(logits) == 9


def test_a_complete_answer_ends_though_more_tokens_are_wanted(vocabulary: Vocabulary) -> None:
    confinement = Confinement(
        vocabulary.tree(), "\n".join([OPTIONS, answer_rule('{"const": 7}'), "start: answer"])
    )
    sampler = Sampler(Sampling(seed=SEED, min_tokens=30), vocabulary, [], CONTEXT, confinement)
    text = b""
    for step in range(30):
        token = sampler.choose(logits_of(step, vocabulary.size))
        if vocabulary.ends(token):
            break
        sampler.accept(token)
        text += vocabulary.piece(token)
    assert text == b"7"


def test_logits_are_left_as_they_are(vocabulary: Vocabulary) -> None:
    logits = logits_of(0, vocabulary.size)
    before = logits.copy()
    sampling = Sampling(logit_bias=[LogitBias(3, 5.0), LogitBias(4, None)], ignore_eos=True)
    Sampler(sampling, vocabulary, [], CONTEXT).choose(logits)
    assert (logits == before).all()


def test_where_nothing_may_come_the_caller_is_told(vocabulary: Vocabulary) -> None:
    class Few:
        """A vocabulary of which every token can be forbidden."""

        size, endings, address = 3, [2], vocabulary.address

    never = [LogitBias(token, None) for token in range(3)]
    few: Any = Few()
    with pytest.raises(CallerError, match="No token is left"):
        Sampler(Sampling(logit_bias=never), few, [], CONTEXT).choose(np.zeros(3, np.float32))


def test_what_the_samplers_left_is_told_with_probabilities_that_sum_to_one(vocabulary: Vocabulary) -> None:
    sampler = Sampler(Sampling(seed=SEED, top_k=5, min_p=0.0, top_p=1.0), vocabulary, (), CONTEXT)
    logits = logits_of(0, vocabulary.size)
    token = sampler.choose(logits)
    left = sampler.left()
    sampler.close()
    best = np.argsort(-logits)[:5]
    assert [one for one, _ in left] == best.tolist()
    assert token in best
    wanted = np.exp(logits[best].astype(np.float64) / 0.8)
    assert np.exp([score for _, score in left]) == pytest.approx(wanted / wanted.sum(), abs=1e-4)


def test_of_the_likeliest_token_nothing_else_is_left(vocabulary: Vocabulary) -> None:
    sampler = Sampler(Sampling(temperature=0), vocabulary, (), CONTEXT)
    assert sampler.left() == []
    token = sampler.choose(logits_of(0, vocabulary.size))
    assert sampler.left() == [(token, 0.0)]
    sampler.close()
