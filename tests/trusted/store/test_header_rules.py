"""The rules of headers: a number that llama.cpp would abort on is refused, its neighbour is not."""

from __future__ import annotations

import pytest
from header_rules import Values, check, complaint

HEADS: Values = {"embedding_length": 64, "attention.head_count": 4}
KDA: Values = {"kda.gate_lower_bound": -1.0}

# Of each rule: the architecture, what all of its headers have, what is refused, why, and what is not.
Rule = tuple[str, Values, Values, str, Values]
ANY: list[Rule] = [
    ("llama", HEADS, {"block_count": 0}, "block_count is 0", {"block_count": 1}),
    ("llama", HEADS, {"block_count": 513}, "block_count is 513", {"block_count": 512}),
    ("llama", HEADS, {"block_count": 2, "nextn_predict_layers": 3}, "is 3", {"nextn_predict_layers": 2}),
    ("llama", HEADS, {"nextn_predict_layers": 513}, "in 0…512", {"nextn_predict_layers": 512}),
    ("llama", {}, {"embedding_length": 0}, "embedding_length is 0", {"embedding_length": 1}),
    ("llama", {}, {"embedding_length": (1 << 20) + 1}, "embedding_length", {"embedding_length": 1 << 20}),
    ("llama", {}, {"embedding_length_out": 0}, "embedding_length_out is 0", {}),
    ("llama", HEADS, {"attention.layer_norm_epsilon": 1.5}, "is 1.5", {"attention.layer_norm_epsilon": 1.0}),
    (
        "llama",
        HEADS,
        {"attention.group_norm_epsilon": -0.5},
        "is -0.5",
        {"attention.group_norm_epsilon": 0.0},
    ),
    ("llama", HEADS, {"attention.layer_norm_rms_epsilon": 2.0}, "rms_epsilon is 2", {}),
]
EXPERTS: list[Rule] = [
    ("llama", HEADS, {"expert_count": 8}, "uses 0 of 8", {"expert_count": 8, "expert_used_count": 8}),
    ("llama", HEADS, {"expert_used_count": 1}, "uses 1 of 0", {}),
    ("llama", HEADS, {"expert_gating_func": 5}, "expert_gating_func is 5", {"expert_gating_func": 4}),
    ("llama", HEADS, {"expert_gating_func": 0}, "expert_gating_func is 0", {"expert_gating_func": 1}),
    *[
        ("llama", {**HEADS, "expert_count": 8, "expert_used_count": 2}, wrong, "groups", right)
        for wrong, right in (
            ({"expert_group_count": 8}, {"expert_group_count": 1}),
            ({"expert_group_count": 4}, {"expert_group_count": 4, "expert_group_used_count": 1}),
            (
                {"expert_group_count": 4, "expert_group_used_count": 4},
                {"expert_group_count": 4, "expert_group_used_count": 3},
            ),
            (
                {"expert_group_count": 3, "expert_group_used_count": 1},
                {"expert_group_count": 2, "expert_group_used_count": 1},
            ),
        )
    ],
]
ATTENTION: list[Rule] = [
    ("llama", {"block_count": 1}, {}, "no heads", {"attention.head_count": 1}),
    ("llama", {}, {"attention.head_count": 0}, "no heads", {}),
    ("llama", {}, {"attention.head_count": [0, 0]}, "no heads", {"attention.head_count": [0, 2]}),
    (
        "llama",
        {},
        {"attention.head_count": (1 << 14) + 1},
        "head_count is 16385",
        {"attention.head_count": 1 << 14},
    ),
    (
        "llama",
        HEADS,
        {"attention.head_count_kv": 3},
        "4 heads cannot share 3",
        {"attention.head_count_kv": 2},
    ),
    ("llama", HEADS, {"attention.head_count_kv": -1}, "head_count_kv is -1", {"attention.head_count_kv": 0}),
    (
        "llama",
        {"attention.head_count": [4, 6]},
        {"attention.head_count_kv": 4},
        "6 heads cannot share 4",
        {"attention.head_count_kv": 2},
    ),
    (
        "llama",
        {"attention.head_count": [4, 6]},
        {"attention.head_count_kv": [2, 4]},
        "6 heads cannot share 4",
        {"attention.head_count_kv": [4, 2]},
    ),
    *[
        ("llama", {}, {f"attention.{size}_length{form}": 0}, f"{size}_length{form} is 0", {})
        for size in ("key", "value")
        for form in ("", "_swa", "_mla")
    ],
    (
        "deepseek2",
        {"attention.head_count": 65},
        {"embedding_length": 64},
        "more heads than its width",
        {"embedding_length": 64, "attention.key_length": 8},
    ),
    (
        "llama",
        {"attention.head_count": 64},
        {"attention.head_count_kv": 7},
        "share",
        {"embedding_length": 64},
    ),
]
ROPE: list[Rule] = [
    ("llama", HEADS, {"rope.scaling.type": "bent"}, "'bent'", {"rope.scaling.type": "yarn"}),
    ("llama", HEADS, {"rope.dimension_count": 7}, "odd", {"rope.dimension_count": 6}),
    ("llama", HEADS, {"rope.dimension_count_swa": 7}, "swa is 7", {"rope.dimension_count_swa": 8}),
    ("llama", HEADS, {"rope.dimension_count": 18}, "heads have 16", {"rope.dimension_count": 16}),
    (
        "llama",
        HEADS,
        {"rope.dimension_sections": [-1, 2, 2]},
        "division",
        {"rope.dimension_sections": [0, 2, 2]},
    ),
    (
        "llama",
        HEADS,
        {"rope.dimension_sections": [0, 0, 0, 8]},
        "division",
        {"rope.dimension_sections": [8, 0, 0, 8]},
    ),
    (
        "llama",
        HEADS,
        {"rope.dimension_sections": [8, 8, 1]},
        "division",
        {"rope.dimension_sections": [8, 8, 0]},
    ),
    ("llama", HEADS, {"rope.freq_base": 0.0}, "freq_base is 0", {"rope.freq_base": 1e4}),
    ("llama", HEADS, {"rope.freq_base_swa": 1e31}, "freq_base_swa", {"rope.freq_base_swa": 1e30}),
]
GRAPHS: list[Rule] = [
    ("qwen3", HEADS, {"rope.dimension_count": 8}, "turn whole", {"rope.dimension_count": 16}),
    (
        "gpt2",
        HEADS,
        {"attention.value_length": 8},
        "16 dimensions of keys and 8",
        {"attention.value_length": 16},
    ),
    ("qwen3", HEADS, {"attention.value_length": 8}, "keys and 8 of values", {}),
    (
        "deepseek2-ocr",
        HEADS,
        {"attention.head_count_kv": 2},
        "their own keys",
        {"attention.head_count_kv": 4},
    ),
    (
        "deepseek2",
        {"rope.dimension_count": 16},
        {"attention.key_length_mla": 16},
        "of which 16 turn",
        {"attention.key_length_mla": 17},
    ),
    (
        "deepseek2",
        {"rope.dimension_count": 16, "attention.key_length_mla": 32, "attention.kv_lora_rank": 64},
        {"attention.key_length": 80, "attention.value_length": 80},
        "80 and 80 are not its latent vectors'",
        {"attention.key_length": 80, "attention.value_length": 64},
    ),
    ("gemma3", {"attention.sliding_window": 8}, {"attention.sliding_window_pattern": 1}, "no layer", {}),
    (
        "gemma3",
        {"attention.sliding_window": 8},
        {"attention.sliding_window_pattern": [False, False]},
        "no layer",
        {"attention.sliding_window_pattern": [False, True]},
    ),
    (
        "gemma3",
        {"attention.sliding_window_pattern": 1},
        {"attention.sliding_window": 4},
        "no layer",
        {"attention.sliding_window": 0},
    ),
    (
        "gemma3",
        {},
        {"attention.sliding_window": (1 << 24) + 1},
        "is 16777217",
        {"attention.sliding_window": 1 << 24},
    ),
    (
        "llama",
        {},
        {"attention.indexer.block_size": 0},
        "block_size is 0",
        {"attention.indexer.block_size": 1},
    ),
    ("rwkv7", {"embedding_length": 128}, {"wkv.head_size": 32}, "cannot compute", {"wkv.head_size": 64}),
    ("rwkv6", {"embedding_length": 128}, {"wkv.head_size": 48}, "cannot compute", {"wkv.head_size": 32}),
    ("rwkv6", {"embedding_length": 128}, {}, "head_size is 0", {"wkv.head_size": 128}),
    (
        "rwkv6",
        {"embedding_length": 64, "wkv.head_size": 32},
        {"token_shift_count": 1},
        "is not 2",
        {"token_shift_count": 2},
    ),
    ("rwkv6qwen2", {"embedding_length": 64, "wkv.head_size": 32}, {}, "is not 1", {"token_shift_count": 1}),
    ("lfm2", HEADS, {"shortconv.l_cache": 1}, "l_cache is 1", {"shortconv.l_cache": 2}),
    ("mamba", {}, {"ssm.conv_kernel": 1025}, "conv_kernel is 1025", {"ssm.conv_kernel": 1024}),
    (
        "jamba",
        {"embedding_length": 64, "ssm.state_size": 16},
        {"ssm.inner_size": 64},
        "not twice its width",
        {"ssm.inner_size": 128},
    ),
    ("mamba", {"ssm.inner_size": 64}, {"ssm.state_size": 24}, "multiple of 16", {"ssm.state_size": 32}),
    ("mamba", {"ssm.inner_size": 64}, {"ssm.state_size": 0}, "state_size is 0", {}),
    *[
        ("mamba2", {"ssm.inner_size": 64, "ssm.state_size": 8}, wrong, "number of heads", right)
        for wrong, right in (
            ({}, {"ssm.time_step_rank": 4}),
            ({"ssm.time_step_rank": 5}, {"ssm.time_step_rank": 64}),
            (
                {"ssm.time_step_rank": 8, "ssm.group_count": 3},
                {"ssm.time_step_rank": 8, "ssm.group_count": 2},
            ),
            (
                {"ssm.time_step_rank": 2, "ssm.group_count": 4},
                {"ssm.time_step_rank": 4, "ssm.group_count": 4},
            ),
        )
    ],
    (
        "plamo2",
        {"ssm.inner_size": 64, "ssm.state_size": 8, "ssm.time_step_rank": 4},
        {"ssm.group_count": 2},
        "group_count is not 0",
        {"ssm.group_count": 0},
    ),
    *[
        ("qwen3next", {"ssm.inner_size": 64, "ssm.state_size": 8}, wrong, "heads of 8", right)
        for wrong, right in (
            ({"ssm.time_step_rank": 8}, {"ssm.time_step_rank": 8, "ssm.group_count": 4}),
            ({"ssm.group_count": 4}, {"ssm.time_step_rank": 8, "ssm.group_count": 8}),
            (
                {"ssm.time_step_rank": 8, "ssm.group_count": 3},
                {"ssm.time_step_rank": 8, "ssm.group_count": 2},
            ),
            (
                {"ssm.time_step_rank": 4, "ssm.group_count": 2},
                {"ssm.time_step_rank": 8, "ssm.group_count": 1},
            ),
        )
    ],
    ("bert", HEADS, {"embedding_length_out": 32}, "vectors have 64 numbers", {"embedding_length_out": 64}),
    ("glm4moe", HEADS, {}, "consists of them", {"expert_count": 2, "expert_used_count": 1}),
    ("lfm2moe", HEADS, {"expert_count": 0}, "consists of them", {"expert_count": 1, "expert_used_count": 1}),
    ("wavtokenizer-dec", HEADS, {"block_count": 2, "posnet.block_count": 3}, "is 3", {"block_count": 3}),
    ("wavtokenizer-dec", HEADS, {"convnext.block_count": 1}, "is 1, which is not in 0…0", {"block_count": 1}),
    (
        "hrm_text",
        {**HEADS, "hrm.layers_per_stack": 2, "hrm.h_cycles": 3, "hrm.l_cycles": 1},
        {"block_count": 11},
        "not that of its cycles",
        {"block_count": 12},
    ),
    (
        "bailingmoe3",
        KDA,
        {"kda.gate_lower_bound": 0.0},
        "gate_lower_bound is 0",
        {"kda.gate_lower_bound": -1e9},
    ),
]


@pytest.mark.parametrize(
    ("architecture", "all_have", "refused", "why", "let_through"),
    [*ANY, *EXPERTS, *ATTENTION, *ROPE, *GRAPHS],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_number_that_llama_cpp_would_abort_on_is_refused_and_its_neighbour_is_not(
    architecture: str, all_have: Values, refused: Values, why: str, let_through: Values
) -> None:
    assert why in complaint(architecture, {**all_have, **refused})
    check(architecture, {**all_have, **let_through})


@pytest.mark.parametrize("architecture", ["mamba", "mamba2", "rwkv6", "arwkv7"])
def test_a_wholly_recurrent_model_needs_no_heads(architecture: str) -> None:
    shift = {"rwkv6": 2, "arwkv7": 1}.get(architecture, 0)
    recurrence = {"embedding_length": 64, "wkv.head_size": 64, "token_shift_count": shift}
    check(architecture, {"block_count": 1, **recurrence})


@pytest.mark.parametrize("architecture", ["lfm2", "gemma4-assistant"])
def test_some_architectures_make_shorter_vectors_than_they_are_wide(architecture: str) -> None:
    check(architecture, {**HEADS, "embedding_length_out": 32})


def test_a_value_of_another_kind_is_left_to_llama_cpp_which_refuses_it() -> None:
    check("llama", {"block_count": "many", "embedding_length": True, "rope.freq_base": 10_000})
    check("llama", {"expert_gating_func": 3.5, "rope.scaling.type": 7})
