"""The rules of headers for vocabularies and tensors: what llama.cpp looks up without looking is there."""

from __future__ import annotations

import array

import pytest
from header_rules import F32, Tensor, check, complaint

F16, Q8_0, Q8_1, Q8_K, I8, I32 = 1, 8, 9, 15, 24, 26
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def vocabulary(**changes: object) -> dict[str, object]:
    """Return a sound vocabulary of bytes and two words, with changes."""
    tokens = [*BYTES, "a", "b"]
    sound = {
        "model": "llama",
        "tokens": tokens,
        "scores": array.array("f", [0.0] * len(tokens)),
        "token_type": array.array("i", [6] * 256 + [1, 1]),
        "eos_token_id": 257,
    }
    return {key: value for key, value in {**sound, **changes}.items() if value is not None}


def test_a_sound_vocabulary_is_let_through_and_so_is_none() -> None:
    check("llama", {"vocab_size": 258}, vocabulary=vocabulary())
    check("llama", {}, vocabulary=vocabulary(scores=None, token_type=None, eos_token_id=None))
    check("llama", {})
    check("llama", {}, vocabulary={"tokens": []})  # llama.cpp says itself that there is no tokenizer


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model": "runes"}, "'runes'"),
        ({"model": 7}, "'7'"),
        ({"tokens": None}, "no tokens"),
        ({"tokens": []}, "no tokens"),
        ({"tokens": [1, 2]}, "no tokens"),
        ({"scores": array.array("f", [0.0])}, "scores are not one for each token"),
        ({"scores": ["x"] * 258}, "scores are not one for each token"),
        ({"token_type": array.array("i", [1])}, "token_type are not one for each token"),
        ({"eos_token_id": 258}, "eos_token_id is no token"),
        ({"bos_token_id": -1}, "bos_token_id is no token"),
        ({"eot_token_id": "</s>"}, "eot_token_id is no token"),
        ({"tokens": ["a"] * 258, "token_type": None}, "no tokens for bytes"),
        ({"token_type": array.array("i", [6] * 257 + [1])}, "of the type of bytes, and is none"),
    ],
)
def test_a_vocabulary_that_llama_cpp_reads_beyond_is_refused(changes: dict[str, object], why: str) -> None:
    assert why in complaint("llama", {}, vocabulary=vocabulary(**changes))


def test_a_token_may_be_said_not_to_be_there() -> None:
    check("llama", {}, vocabulary=vocabulary(sep_token_id=0xFFFF_FFFF, unk_token_id=0, pad_token_id=257))
    assert "no token" in complaint("llama", {}, vocabulary=vocabulary(sep_token_id=0xFFFF_FFFE))


def test_a_vocabulary_has_the_size_that_the_model_says() -> None:
    check("llama", {"vocab_size": 0}, vocabulary=vocabulary())
    assert "258 tokens, and its vocab_size is 7" in complaint(
        "llama", {"vocab_size": 7}, vocabulary=vocabulary()
    )


def test_only_some_tokenizers_spell_bytes() -> None:
    gpt2 = vocabulary(model="gpt2", tokens=["<0x0A>", "a"], scores=None, eos_token_id=0)
    check("llama", {}, vocabulary={**gpt2, "token_type": array.array("i", [6, 1])})
    assert "bytes" in complaint("llama", {}, vocabulary={**gpt2, "token_type": array.array("i", [1, 6])})
    for tokenizer in ("bert", "rwkv", "plamo2"):
        spelled = {**gpt2, "model": tokenizer}
        assert "bytes" in complaint(
            "llama", {}, vocabulary={**spelled, "token_type": array.array("i", [6, 1])}
        )
        check("llama", {}, vocabulary={**spelled, "token_type": array.array("i", [1, 1])})


# ---- tensors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [I8, I32, Q8_1, Q8_K])
def test_weights_are_not_of_types_that_only_computing_has(kind: int) -> None:
    assert "none of weights" in complaint("llama", {}, [Tensor("blk.0.attn_q.weight", kind, (32, 32))])


def test_a_table_of_experts_is_of_whole_numbers() -> None:
    check("llama", {}, [Tensor("blk.0.ffn_gate_tid2eid.weight", I32, (8, 32))])
    assert "none of weights" in complaint("llama", {}, [Tensor("blk.0.ffn_gate_tid2eid.weight", I8, (8, 32))])


@pytest.mark.parametrize(
    "name",
    [
        "output_norm.weight",
        "token_types.weight",
        "blk.0.attn_q.bias",
        "blk.0.ssm_a",
        "blk.0.shortconv.conv.weight",
        "blk.0.attn_sinks.weight",
        "enc.blk.0.attn_rel_b.weight",
        "blk.0.ffn_up.scale",
    ],
)
def test_what_ggml_adds_or_scales_by_is_f32(name: str) -> None:
    check("llama", {}, [Tensor(name, F32, (32, 32))])
    assert "not of type F32" in complaint("llama", {}, [Tensor(name, F16, (32, 32))])


def test_a_matrix_may_be_quantized_and_a_row_may_not() -> None:
    check("llama", {}, [Tensor("blk.0.attn_q.weight", Q8_0, (32, 32))])
    assert "not of type F32" in complaint("llama", {}, [Tensor("blk.0.attn_q.weight", Q8_0, (32,))])


@pytest.mark.parametrize(
    ("architecture", "there", "missing", "instead"),
    [
        (
            "t5encoder",
            "enc.blk.0.attn_q.weight",
            "enc.blk.0.attn_rel_b.weight",
            "enc.blk.0.attn_rel_b.weight",
        ),
        ("phi3", "blk.3.attn_norm.weight", "blk.3.attn_qkv.weight", "blk.3.attn_q.weight"),
        (
            "rwkv6",
            "blk.0.time_mix_w1.weight",
            "blk.0.time_mix_lerp_fused.weight",
            "blk.0.time_mix_lerp_w.weight",
        ),
    ],
)
def test_a_tensor_that_computing_needs_is_missed_unless_another_does_its_work(
    architecture: str, there: str, missing: str, instead: str
) -> None:
    values = {"embedding_length": 64, "wkv.head_size": 64, "token_shift_count": 2}
    tensors = [Tensor(there, F32, (32, 32))]
    assert f"tensor {missing!r} is missing" in complaint(architecture, values, tensors)
    for name in (missing, instead):
        check(architecture, values, [*tensors, Tensor(name, F32, (32, 32))])


def test_a_delta_net_needs_its_queries_and_its_gate() -> None:
    tensors = [
        Tensor("blk.0.ssm_conv1d.weight", F32, (4, 32)),
        Tensor("blk.0.attn_qkv.weight", F16, (32, 32)),
    ]
    assert "'blk.0.attn_gate.weight' is missing" in complaint("qwen3next", {}, tensors)
    check("qwen3next", {}, [*tensors, Tensor("blk.0.attn_gate.weight", F16, (32, 32))])
    check("qwen3next", {}, [tensors[0], Tensor("blk.0.ssm_in.weight", F16, (32, 32))])


def test_what_a_file_says_is_quoted_in_part_only() -> None:
    long = "x" * 100_000
    assert len(complaint("llama", {"rope.scaling.type": long})) < 300
    assert len(complaint("llama", {}, vocabulary=vocabulary(model=long))) < 300
    assert len(complaint("llama", {}, [Tensor(long, I8, (32, 32))])) < 300
