"""What would abort llama.cpp is refused by the reader, and fuzzing finds no other way out of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from flexserve.errors import CallerError
from flexserve.testing.architectures import make_models
from flexserve.testing.gguf_mutation import Draft, Tensor, take_apart
from flexserve.testing.header_fuzz import Server, drafts_of, fuzz, keep, warm
from flexserve.testing.living_world import LivingWorld
from flexserve.trusted.store import parse_gguf

pytestmark = pytest.mark.engine

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of each of FAMILIES."""
    folder = tmp_path_factory.mktemp("families")
    assert make_models(FAMILIES, folder) == {}
    return folder


def put(key: str, kind: int, value: object, family: str = "llama") -> Change:
    """Return the change that gives a model of `family` (or its vocabulary) another value."""

    def change(draft: Draft) -> None:
        name = key if key.startswith("tokenizer.") else f"{family}.{key}"
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


@pytest.mark.parametrize(
    ("family", "key", "kind", "value", "complaint"),
    [
        ("qwen3moe", "rope.dimension_count", U32, 8, "turn whole"),
        ("qwen3moe", "expert_gating_func", U32, 0, "expert_gating_func is 0"),
        ("gpt2", "attention.value_length", U32, 32, "16 dimensions of keys and 32 of values"),
        ("deepseek2", "attention.key_length_mla", U32, 16, "of which 16 turn"),
        ("deepseek2", "attention.key_length", U32, 64, "not its latent vectors'"),
        ("rwkv7", "tokenizer.ggml.model", STRING, "llama", "no tokens for bytes"),
        ("gemma3", "attention.sliding_window_pattern", U32, 1, "no layer that has one"),
        ("gemma3", "attention.sliding_window", U32, 1 << 30, "sliding_window is"),
        ("bert", "embedding_length_out", U32, 256, "vectors have 64 numbers"),
        ("mamba", "ssm.state_size", U32, 17, "not a multiple of 16"),
        ("mamba", "ssm.conv_kernel", U32, 1 << 31, "ssm.conv_kernel is"),
        ("rwkv7", "wkv.head_size", U32, 16, "wkv.head_size is 16"),
        ("rwkv7", "wkv.head_size", U32, 0, "wkv.head_size is 0"),
        ("rwkv7", "token_shift_count", U32, 1, "token_shift_count is not 2"),
    ],
)
def test_what_a_familys_graph_would_abort_on_or_compute_wrongly_is_refused(
    folder: Path, family: str, key: str, kind: int, value: object, complaint: str
) -> None:
    draft = take_apart((folder / f"{family}.gguf").read_bytes())
    read(draft)
    put(key, kind, value, family)(draft)
    with pytest.raises(CallerError) as caught:
        read(draft)
    assert caught.value.code == "bad_gguf"
    assert complaint in caught.value.message


@pytest.mark.parametrize("name", ["enc.blk.0.attn_rel_b.weight", "dec.blk.0.attn_rel_b.weight"])
def test_a_tensor_that_loading_does_without_and_computing_does_not_is_missed(folder: Path, name: str) -> None:
    draft = take_apart((folder / "t5.gguf").read_bytes())
    draft.tensors = [tensor for tensor in draft.tensors if tensor.name != name]
    with pytest.raises(CallerError, match="is missing"):
        read(draft)


def test_a_block_needs_one_of_the_forms_of_its_attention() -> None:
    draft = Draft([("general.architecture", (STRING, "phi3"))], [Tensor("blk.0.attn_norm.weight", 0, (32,))])
    with pytest.raises(CallerError, match=r"'blk.0.attn_qkv.weight' is missing"):
        read(draft)
    draft.tensors.append(Tensor("blk.0.attn_q.weight", 0, (32, 32)))
    read(draft)


def test_a_sample_of_any_size_is_kept_or_said_to_be_too_large(tmp_path: Path) -> None:
    assert keep((b"GGUF", 1 << 30), tmp_path / "deaths" / "0.gguf")
    assert (tmp_path / "deaths" / "0.gguf").stat().st_size == 1 << 30
    assert not keep((b"GGUF", 1 << 63), tmp_path / "deaths" / "1.gguf")


@pytest.mark.timeout(900)
def test_ten_thousand_changed_headers_end_few_processes_that_try_them_and_no_world_that_serves(
    folder: Path,
) -> None:
    warm()
    drafts = drafts_of(folder)
    assert len(drafts) == len(FAMILIES)
    with LivingWorld(MODEL) as world:
        # Raises what the reader must not raise.
        tally = fuzz(drafts, 10_000, seed=7, serve=Server(world, every=80).serve)
        assert world.counts.admitted > 10
        assert (world.counts.deaths_of_servers, world.counts.wrong) == (Counter(), 0)
    assert tally.headers == 10_000
    assert tally.opened > 500  # else the changes are too wild to reach llama.cpp
    # What still ends llama.cpp is refused by `add`, whose world of its own it ends.
    assert sum(tally.deaths.values()) < tally.survivors / 500, tally.deaths
