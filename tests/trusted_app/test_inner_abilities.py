"""What the trusted application of S-EL0 does beside plain answers, judged by plain llama.cpp."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from inner_application import QUESTION
from inner_judge import Judge
from inner_models import Made, Opened, no_tokens

from flexserve.harness.inner import SealedFile
from flexserve.protocol.model_options import KvType
from flexserve.protocol.sampling import Sampling
from flexserve.tee_client.messages import Ask, Finish, Status
from flexserve.tee_client.sampling import Said, said, settings
from flexserve.trusted.engine.sampler import log_probabilities

PROMPT = [5, 17, 40, 41, 42, 17, 40, 99, 100, 7, 8, 9]
LONG = [(7 * each) % 150 + 3 for each in range(90)]
GREEDY = settings(Sampling(temperature=0, logprobs=0, ignore_eos=True), no_tokens)
TELLING = settings(Sampling(temperature=0, logprobs=2, echo=True, ignore_eos=True), no_tokens)
AT_ONCE = 16  # tokens whose scores one graph makes
FAMILIES = pytest.mark.parametrize("architecture", ["qwen3", "gemma3", "mamba", "jamba"])


# ---- the probabilities of a prompt ---------------------------------------------------------------


def told(model: Opened, prompt: Sequence[int], *, most: int) -> Said:
    """Return what is told of a prompt and of its answer."""
    model.begin(prompt, most=most, sampling=TELLING)
    answered = model.say(logprobs=2)
    model.do(Ask.END, 0)
    return answered


@FAMILIES
def test_a_prompts_tokens_have_the_log_probabilities_of_plain_llama_cpp(
    made: Made, judge: Judge, tmp_path: Path, architecture: str
) -> None:
    model = made(architecture)
    answered = told(model, LONG, most=1)
    assert answered.tokens[:-1] == LONG[1:]
    rows = judge.each(tmp_path / "model.gguf", LONG, AT_ONCE)
    for (own, likeliest), row, token in zip(answered.scores, rows, answered.tokens, strict=True):
        expected = log_probabilities(row)
        assert own.token == token
        assert own.value == pytest.approx(expected[token], abs=1e-3)
        assert [each.value for each in likeliest] == pytest.approx(sorted(expected)[:-3:-1], abs=1e-3)


def test_prompts_are_told_beside_each_other_and_beside_answers(made: Made) -> None:
    model = made("qwen3", sequences=2)
    alone = [told(model, LONG, most=4), told(model, LONG[::-1], most=4)]
    for sequence, prompt in enumerate((LONG, LONG[::-1])):
        model.begin(prompt, sequence=sequence, most=4, sampling=TELLING)
    together: list[Said] = [Said([], []), Said([], [])]
    going = [0, 1]
    while going:
        for it in model.step(*going):
            more = said(model.do(Ask.SAID, it.sequence), 2)
            together[it.sequence].tokens.extend(more.tokens)
            together[it.sequence].scores.extend(more.scores)
            if it.finished is not Finish.NO:
                going.remove(it.sequence)
    for one, other in zip(alone, together, strict=True):
        assert one.tokens == other.tokens
        values = [[own.value for own, _ in each.scores] for each in (one, other)]
        assert values[0] == pytest.approx(values[1], abs=1e-3)


def test_of_kv_that_is_there_the_tokens_behind_it_are_told(loaded: Opened) -> None:
    loaded.answer(LONG, most=1)
    pending = loaded.begin([*LONG[:50], *PROMPT], most=1, sampling=TELLING)
    assert pending == len(PROMPT)
    assert loaded.say(logprobs=2).tokens[:-1] == PROMPT[1:]


# ---- a context that is full ----------------------------------------------------------------------


@FAMILIES
def test_a_full_context_goes_on_as_if_its_rest_had_been_the_prompt(
    made: Made, judge: Judge, tmp_path: Path, architecture: str
) -> None:
    model = made(architecture, context=64)
    model.begin(LONG[:56], most=40, sampling=GREEDY)
    before = model.say(logprobs=0)
    assert len(before.tokens) == 8
    whole = [*LONG[:56], *before.tokens]
    rest = whole[:4] + whole[40:]
    pending = model.shift(4, 40)
    assert pending == len(rest) - (4 if architecture == "qwen3" else 0)  # others cannot go back
    after = model.say(logprobs=0)
    assert len(after.tokens) == 32  # to the answer's limit
    rows = judge.logits(tmp_path / "model.gguf", rest, after.tokens[:-1])
    expected = [log_probabilities(row)[token] for row, token in zip(rows, after.tokens, strict=True)]
    assert [own.value for own, _ in after.scores] == pytest.approx(expected, abs=1e-2)
    model.do(Ask.END, 0)
    assert model.begin([*rest, *after.tokens]) == 1  # its KV is that of its tokens


def test_only_a_context_that_is_full_gives_tokens_up(opened: Opened) -> None:
    opened.write()
    ask = opened.app.ask
    assert ask(Ask.SHIFT, 0, 0, 1, 2).status is Status.BAD  # nothing began
    opened.begin(LONG, most=2, sampling=GREEDY)
    assert ask(Ask.SHIFT, 0, 0, 1, 2).status is Status.BAD  # it goes on
    while opened.step(0)[0].finished is Finish.NO:
        pass
    assert ask(Ask.SHIFT, 0, 0, 1, 2).status is Status.BAD  # what it said was not taken
    opened.do(Ask.SAID, 0)
    most = (1 << 64) - 1
    for first, end in ((2, 2), (3, 2), (0, len(LONG) + 2), (0, 1 << 63), (most, 1), (1 << 63, most)):
        assert ask(Ask.SHIFT, 0, 0, first, end).status is Status.BAD
    assert opened.shift(0, len(LONG) + 1) == 1


# ---- types of KV ---------------------------------------------------------------------------------

WIDE = {
    "embedding_length": 128,
    "rope.dimension_count": 32,
}


@pytest.mark.parametrize("kv", ["q8_0", "q4_0"])
@pytest.mark.parametrize("architecture", ["qwen3", "gemma3", "falcon-h1"])
def test_kv_that_is_quantised_makes_the_log_probabilities_of_plain_llama_cpp(
    made: Made, judge: Judge, tmp_path: Path, architecture: str, kv: KvType
) -> None:
    model = made(architecture, WIDE, kv=kv)
    model.begin(LONG, most=8, sampling=GREEDY)
    answered = model.rest(logprobs=0)
    rows = judge.logits(tmp_path / "model.gguf", LONG, answered.tokens[:-1], kv=kv)
    expected = [log_probabilities(row)[token] for row, token in zip(rows, answered.tokens, strict=True)]
    assert [own.value for own, _ in answered.scores] == pytest.approx(expected, abs=1e-3)


def test_kv_that_is_quantised_is_smaller_and_is_sealed_and_taken_in_again(
    opened: Opened, sealed: SealedFile
) -> None:
    kinds: tuple[KvType, ...] = ("f16", "q8_0", "q4_0")
    sizes = [
        Opened(opened.app, sealed, number=number, kv=kv, sequences=16).kv_chunks
        for number, kv in enumerate(kinds, 1)
    ]
    assert sizes[0] > sizes[1] > sizes[2]
    model = Opened(opened.app, sealed, number=7, kv="q8_0")
    model.write()
    prompt = model.tokenise(QUESTION)
    answer = model.answer(prompt, most=8)
    kept = model.keep()
    other = Opened(opened.app, sealed, number=8)  # as f16
    assert other.resume(0, kept) is Status.UNSUPPORTED
    model.evict()
    assert model.resume(0, kept) is Status.DONE
    assert model.begin([*prompt, *answer], most=1) == 1


def test_kv_of_a_shape_that_cannot_be_quantised_is_refused(made: Made) -> None:
    with pytest.raises(AssertionError, match="UNSUPPORTED"):
        made("qwen3", kv="q8_0")  # a head has 16 numbers, a block 32


@pytest.mark.parametrize("kind", [0, 3, 12, 30, 99, (1 << 32) - 1])
def test_other_types_of_kv_are_none(opened: Opened, sealed: SealedFile, kind: int) -> None:
    manifest, opening = sealed.manifest, bytearray(sealed.opening())
    struct.pack_into("<I", opening, 108, kind)
    sizes = (manifest.size, 1024, 1, manifest.metadata_bytes)
    assert opened.app.ask(Ask.OPEN, 5, *sizes, payload=bytes(opening)).status is Status.BAD


# ---- many answers at once ------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3", "mamba", "jamba"])
def test_sixty_four_answers_at_once_are_those_of_each_alone(made: Made, architecture: str) -> None:
    model = made(architecture, sequences=64, context=64)
    prompts = [[(each * 13 + place * 7) % 150 + 3 for place in range(5 + each % 9)] for each in range(64)]
    alone = []
    for prompt in prompts[::9]:
        model.begin(prompt, most=4, sampling=GREEDY)
        alone.append(model.rest(logprobs=0))
    for sequence, prompt in enumerate(prompts):
        model.begin(prompt, sequence=sequence, most=4, sampling=GREEDY)
    going = list(range(64))
    while going:
        over = [it.sequence for it in model.step(*going) if it.finished is not Finish.NO]
        going = [sequence for sequence in going if sequence not in over]
    for one, sequence in zip(alone, range(0, 64, 9), strict=True):
        other = said(model.do(Ask.SAID, sequence), 0)
        assert other.tokens == one.tokens
        assert [own.value for own, _ in other.scores] == pytest.approx(
            [own.value for own, _ in one.scores], abs=1e-2
        )


def test_more_than_sixty_four_are_none(opened: Opened, sealed: SealedFile) -> None:
    manifest = sealed.manifest
    for count, status in ((65, Status.BAD), (64, Status.DONE)):
        sizes = (manifest.size, 16, count, manifest.metadata_bytes)
        assert opened.app.ask(Ask.OPEN, 5, *sizes, payload=sealed.opening()).status is status


# ---- marks ---------------------------------------------------------------------------------------


def test_the_marks_of_texts_are_those_that_texts_get(made: Made) -> None:
    model = made("bert")
    begin, *_, end = model.tokenise("a text")
    assert marks(model)[:3] == [begin, -1, end]


def test_the_marks_of_gaps_are_those_that_the_file_names(made: Made) -> None:
    names = ("fim_pre", "fim_suf", "fim_mid", "fim_sep")
    numbers = {f"/tokenizer.ggml.{name}_token_id": number for number, name in enumerate(names, 20)}
    assert marks(made("qwen3", numbers))[3:] == [*range(20, 24)]


def test_marks_that_a_text_is_not_given_are_none(loaded: Opened) -> None:
    assert marks(loaded) == [-1, -1, -1, -1, -1, -1, -1]


def marks(model: Opened) -> list[int]:
    """Return them."""
    return list(struct.unpack("<7i", model.do(Ask.MARKS).payload))
