"""What would abort llama.cpp is refused by the reader, and fuzzing finds no other way out of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flexserve.errors import CallerError
from flexserve.secure.models import parse_gguf
from flexserve.testing.architectures import make_models
from flexserve.testing.gguf_mutation import Draft, Tensor, take_apart
from flexserve.testing.header_fuzz import drafts_of, fuzz, warm

MODEL = Path(__file__).parents[3] / "models/tiny/flexserve-tiny.gguf"
Change = Callable[[Draft], None]
U32, F32, STRING, ARRAY = 4, 6, 8, 9
FAMILIES = ("llama", "gemma3", "qwen3moe", "bert", "t5", "mamba", "gpt2", "deepseek2", "rwkv7", "gpt-oss")


def read(draft: Draft) -> None:
    head, size = draft.encode()
    parse_gguf(lambda offset, length: head[offset : offset + length].ljust(length, b"\0"), size)


@pytest.fixture(scope="module")
def sound() -> Draft:
    return take_apart(MODEL.read_bytes())


def put(key: str, kind: int, value: object) -> Change:
    """Return the change that gives the llama of the tests (or its vocabulary) another value."""

    def change(draft: Draft) -> None:
        name = key if key.startswith("tokenizer.") else f"llama.{key}"
        draft.pairs = [pair for pair in draft.pairs if pair[0] != name]
        draft.pairs.append((name, (kind, value)))

    return change


def retype(name: str, kind: int) -> Change:
    def change(draft: Draft) -> None:
        tensor = next(tensor for tensor in draft.tensors if tensor.name == name)
        draft.tensors[draft.tensors.index(tensor)] = Tensor(name, kind, tensor.shape)

    return change


def test_a_sound_header_taken_apart_and_put_together_is_read(sound: Draft) -> None:
    read(sound)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (put("block_count", U32, 0), "block_count is 0"),
        (put("block_count", U32, 513), "block_count is 513"),
        (put("embedding_length", U32, 0), "embedding_length is 0"),
        (put("expert_count", U32, 1025), "expert_count is 1025"),
        (put("expert_used_count", U32, 2), "2 of 0 experts"),
        (put("attention.head_count", U32, 0), "no heads"),
        (put("attention.head_count_kv", U32, 3), "cannot share 3"),
        (put("attention.layer_norm_rms_epsilon", F32, -1.0), "epsilon is -1"),
        (put("attention.layer_norm_rms_epsilon", F32, float("nan")), "epsilon is nan"),
        (put("rope.scaling.type", STRING, "bent"), "'bent'"),
        (put("rope.dimension_count", U32, 15), "odd"),
        (put("rope.dimension_count", U32, 1 << 19), "heads have"),
        (put("rope.dimension_sections", ARRAY, (5, [0, 0, 0, 0])), "division of a head"),
        (put("tokenizer.ggml.model", STRING, "runes"), "'runes'"),
        (put("tokenizer.ggml.tokens", ARRAY, (STRING, [])), "no tokens"),
        (put("tokenizer.ggml.scores", ARRAY, (F32, [0.0])), "one for each token"),
        (put("tokenizer.ggml.eos_token_id", U32, 1 << 20), "no token of its vocabulary"),
        (put("vocab_size", U32, 7), "its vocab_size is 7"),
        (retype("output_norm.weight", 1), "F32"),
        (retype("token_embd.weight", 26), "none of weights"),
        (retype("token_embd.weight", 9), "none of weights"),
    ],
)
def test_what_would_abort_llama_cpp_is_refused(sound: Draft, change: Change, complaint: str) -> None:
    draft = sound.copy()
    change(draft)
    with pytest.raises(CallerError) as caught:
        read(draft)
    assert caught.value.code == "bad_gguf"
    assert complaint in caught.value.message


def test_ten_thousand_changed_headers_are_read_or_refused_and_few_that_are_read_end_a_process(
    tmp_path: Path,
) -> None:
    assert make_models(FAMILIES, tmp_path) == {}
    warm()
    tally = fuzz(drafts_of(tmp_path), 10_000, seed=7)  # raises what the reader must not raise
    assert tally.headers == 10_000
    assert tally.opened > 500  # else the changes are too wild to reach llama.cpp
    # What still ends llama.cpp is refused by `add`, whose process of its own it ends.
    assert sum(tally.deaths.values()) < tally.survivors / 100, tally.deaths
