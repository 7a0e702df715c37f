"""Parameters of tiny models: for all, for whoever asks, for one architecture.

Names are those of GGUF files without the architecture's before them; one that has none begins with "/".
"""

from __future__ import annotations

from collections.abc import Mapping

Value = bool | int | float | str | list[int] | list[float] | list[bool]
Parameters = Mapping[str, Value | None]  # None: the file does not have it

# LLM_ARCH_NAMES of llama.cpp as llama-cpp-python 0.3.36 brings it.
# fmt: off
ARCHITECTURES = (
    "clip", "llama", "llama4", "deci", "falcon", "grok", "gpt2", "gptj", "gptneox", "mpt", "baichuan",
    "starcoder", "refact", "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert",
    "jina-bert-v2", "jina-bert-v3", "eurobert", "bloom", "stablelm", "qwen", "qwen2", "qwen2moe",
    "qwen2vl", "qwen3", "qwen3moe", "qwen3next", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe",
    "qwen4exp", "phi2", "phi3", "phimoe", "plamo", "plamo2", "plamo3", "codeshell", "orion",
    "internlm2", "minicpm", "minicpm3", "gemma", "gemma2", "gemma3", "gemma3n", "gemma4",
    "gemma4-assistant", "gemma-embedding", "starcoder2", "mamba", "mamba2", "maple", "jamba",
    "falcon-h1", "xverse", "command-r", "cohere2", "cohere2moe", "dbrx", "olmo", "olmo2", "olmoe",
    "muse-glimmer", "openelm", "arctic", "deepseek", "deepseek2", "deepseek2-ocr", "deepseek32",
    "deepseek4", "chatglm", "glm4", "glm4moe", "glm-dsa", "bitnet", "t5", "t5encoder", "jais", "jais2",
    "nemotron", "nemotron_h", "nemotron_h_moe", "exaone", "exaone4", "exaone-moe", "rwkv6",
    "rwkv6qwen2", "rwkv7", "arwkv7", "granite", "granitemoe", "granitehybrid", "graniteswitch",
    "granite_swa", "chameleon", "wavtokenizer-dec", "plm", "bailingmoe", "bailingmoe2", "bailingmoe3",
    "dots1", "dots3note", "arcee", "afmoe", "laguna", "ernie4_5", "ernie4_5-moe", "hunyuan-moe",
    "hunyuan-dense", "hunyuan_vl", "hy_v3", "hy_v4", "smollm3", "gpt-oss", "lfm2", "lfm2moe", "dream",
    "smallthinker", "llada", "llada-moe", "seed_oss", "grovemoe", "apertus", "minimax-01", "hrm_text",
    "minimax-m2", "minimax-m3", "cogvlm", "rnd1", "pangu-embedded", "mistral3", "eagle3", "dflash",
    "mistral4", "paddleocr", "mimo2", "step35", "spark2_5", "llama-embed", "maincoder", "kimi-linear",
    "kimi-k3", "glm5-next", "talkie", "mellum", "nanbeige", "qwen3tts", "pockettts",
)
# fmt: on

# Architectures of which no model is made here, and why.
UNMADE: dict[str, str] = {
    "clip": "a projector beside a model, not a model: llama.cpp refuses to load it as one",
    "gptj": "llama.cpp knows the name and refuses: unsupported model architecture",
}

# Those whose attention sees the whole text: they make vectors, not text.
ENCODERS = (
    "bert",
    "modern-bert",
    "nomic-bert",
    "nomic-bert-moe",
    "neo-bert",
    "jina-bert-v2",
    "jina-bert-v3",
    "eurobert",
    "gemma-embedding",
    "llama-embed",
    "t5encoder",
)

TOKENIZERS = {name: "bert" for name in ENCODERS if "bert" in name and name != "eurobert"} | {
    "t5": "t5",
    "t5encoder": "t5",
    "rwkv6": "rwkv",
    "rwkv7": "rwkv",
}

COMMON: dict[str, Value] = {
    "context_length": 512,
    "embedding_length": 64,
    "block_count": 2,
    "feed_forward_length": 128,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.layer_norm_epsilon": 1e-5,
    "rope.dimension_count": 16,
    "rope.freq_base": 10000.0,
}

# What a loader gets when it asks.
ON_DEMAND: dict[str, Value] = {
    "activation.situ_beta": 1.0,
    "activation.situ_linear_beta": 1.0,
    "adapters.count": 2,
    "adapters.lora_rank": 8,
    "attention.causal": True,
    "attention.clamp_kqv": 8.0,
    "attention.compress_rope_freq_base": 10000.0,
    "attention.decay_lora_rank": 32,
    "attention.gate_lora_rank": 32,
    "attention.group_norm_epsilon": 1e-5,
    "attention.group_norm_groups": 4,
    "attention.iclr_lora_rank": 32,
    "attention.indexer.block_size": 16,
    "attention.indexer.head_count": 2,
    "attention.indexer.key_length": 64,
    "attention.indexer.kpool": 4,
    "attention.indexer.local_blocks": 1,
    "attention.indexer.top_k": 64,
    "attention.key_length": 16,
    "attention.key_length_mla": 32,
    "attention.key_length_mla_swa": 32,
    "attention.key_length_swa": 16,
    "attention.kv_lora_rank": 32,
    "attention.kv_lora_rank_swa": 32,
    "attention.max_alibi_bias": 8.0,
    "attention.output_group_count": 2,
    "attention.output_lora_rank": 32,
    "attention.q_lora_rank": 32,
    "attention.relative_buckets_count": 32,
    "attention.scale": 0.25,
    "attention.sliding_window": 64,
    "attention.sliding_window_pattern": 2,
    "attention.value_length": 16,
    "attention.value_length_mla": 16,
    "attention.value_length_mla_swa": 16,
    "attention.value_length_swa": 16,
    "attention.value_residual_mix_lora_rank": 32,
    "attn_logit_softcapping": 50.0,
    "attn_res.block_size": 2,
    "decoder_start_token_id": 0,
    "embedding_length_per_layer_input": 16,
    "embedding_scale": 1.0,
    "expert_chunk_feed_forward_length": 64,
    "expert_count": 4,
    "expert_feed_forward_length": 64,
    "expert_gating_func": 1,
    "expert_group_scale": 0.05,
    "expert_shared_count": 1,
    "expert_shared_feed_forward_length": 64,
    "expert_used_count": 2,
    "expert_weights_norm": True,
    "expert_weights_scale": 1.0,
    "experts_per_group": 2,
    "final_logit_softcapping": 30.0,
    "hash_layer_count": 0,
    "hrm.h_cycles": 2,
    "hrm.l_cycles": 2,
    "hyper_connection.count": 4,
    "hyper_connection.epsilon": 1e-6,
    "hyper_connection.low_rank": 8,
    "hyper_connection.magnitude": 1.0,
    "hyper_connection.sinkhorn_iterations": 4,
    "interleave_moe_layer_step": 1,
    "kda.gate_lower_bound": -5.0,
    "kda.head_dim": 16,
    "leading_dense_block_count": 1,
    "logit_scale": 1.0,
    "moe_every_n_layers": 2,
    "n_deepstack_layers": 0,
    "num_deepstack_layers": 0,
    "rescale_every_n_layers": 0,
    "residual_scale": 1.0,
    "rope.dimension_sections": [4, 4, 0, 0],
    "rope.freq_base_swa": 10000.0,
    "rope.scaling.original_context_length": 256,
    "shortconv.l_cache": 3,
    "ssm.conv_kernel": 4,
    "ssm.group_count": 1,
    "ssm.inner_size": 128,
    "ssm.state_size": 16,
    "ssm.time_step_rank": 4,
    "swiglu_clamp_exp": 7.0,
    "swiglu_clamp_shexp": 7.0,
    "time_decay_extra_dim": 32,
    "time_mix_extra_dim": 32,
    "token_shift_count": 2,
    "token_type_count": 2,
    "use_parallel_residual": True,
    "wkv.head_size": 16,
}

_WINDOW: dict[str, Value] = {"attention.sliding_window": 64}
_EXPERTS: dict[str, Value] = {"expert_count": 4, "expert_used_count": 2}
_LENGTHS: dict[str, Value] = {"attention.key_length": 16, "attention.value_length": 16}
_ALTERNATING: dict[str, Value] = {"block_count": 4, "attention.head_count_kv": [0, 2, 0, 2]}
_ATTENTION_FREE: dict[str, Value] = {"attention.head_count": 0, "attention.head_count_kv": 0}
_HEADS_ALIKE: dict[str, Value] = {"attention.head_count_kv": 4}
_BERT: dict[str, Value] = {"attention.causal": False, "pooling_type": 1, "token_type_count": 2}
_SECTIONS: dict[str, Value] = {"rope.dimension_sections": [4, 2, 2, 0]}
_DELTA_NET: dict[str, Value] = {
    "block_count": 4,
    "ssm.group_count": 2,
    "ssm.inner_size": 64,
    "ssm.state_size": 16,
    "ssm.time_step_rank": 4,
}
_LATENT: dict[str, Value] = {
    "attention.head_count_kv": 1,
    "attention.key_length": 48,
    "attention.value_length": 32,
    "attention.key_length_mla": 32,
    "attention.value_length_mla": 16,
    "block_count": 3,
    "expert_weights_norm": True,
}
_LATENT_HYBRID: dict[str, Value] = {
    **_LATENT,
    **_EXPERTS,
    "attention.head_count_kv": [0, 1, 0, 1],
    "block_count": 4,
}
_LAYER_BY_LAYER: dict[str, Value] = {
    "attention.head_count": [4, 4],
    "attention.head_count_kv": [2, 2],
    "feed_forward_length": [128, 128],
}
_NEMOTRON_H: dict[str, Value] = {
    "attention.head_count_kv": [0, 2, 0, 0],
    "block_count": 4,
    "feed_forward_length": [0, 0, 128, 0],
    "ssm.time_step_rank": 8,
}
_PATTERNED: dict[str, Value] = {
    "attention.sliding_window_pattern": [True, False, True, False],
    "attention.sliding_window": 64,
    "block_count": 4,
}

PARTICULAR: dict[str, dict[str, Value]] = {
    "afmoe": {**_EXPERTS, **_WINDOW, "block_count": 4},
    "apertus": {f"/xielu.{name}": [0.8, 0.8] for name in ("alpha_n", "alpha_p", "beta", "eps")},
    "arctic": _EXPERTS,
    "arwkv7": {**_ATTENTION_FREE, "token_shift_count": 1, "wkv.head_size": 64},
    "baichuan": _HEADS_ALIKE,
    "bailingmoe2": _EXPERTS,
    "bailingmoe3": _LATENT_HYBRID,
    "bert": {**_BERT, "pooling_type": 2},
    "bloom": _HEADS_ALIKE,
    "cohere2": {**_WINDOW, "block_count": 4},
    "dbrx": _EXPERTS,
    "deci": _LAYER_BY_LAYER,
    "deepseek2": _LATENT,
    "deepseek32": {**_LATENT, **_EXPERTS},
    "deepseek4": {
        **_EXPERTS,
        **_WINDOW,
        "attention.compress_ratios": [0, 4, 4, 0],
        "attention.head_count_kv": 1,
        "block_count": 4,
        "expert_gating_func": 4,
        "rope.dimension_count": 8,
    },
    "deepseek2-ocr": _HEADS_ALIKE,
    "dots1": {**_HEADS_ALIKE, "expert_gating_func": 2},
    "dflash": {"target_layers": [0, 1]},
    "dots3note": {
        **_LATENT,
        **_PATTERNED,
        **_EXPERTS,
        "attention.indexer.types": [True, True, True, True],
    },
    "eagle3": {"block_count": 1, "target_hidden_size": 64, "target_layers": [0, 1, 1]},
    "ernie4_5-moe": _EXPERTS,
    "falcon": {"attention.head_count_kv": 1},
    "falcon-h1": {"ssm.time_step_rank": 8},
    "gemma-embedding": {**_WINDOW, "attention.head_count_kv": 1, "block_count": 6, "pooling_type": 1},
    "gemma2": {
        **_WINDOW,
        "attention.key_length": 32,
        "attention.value_length": 32,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3": {**_WINDOW, "attention.key_length": 32, "attention.value_length": 32, "block_count": 6},
    "gemma3n": {"block_count": 10},
    "gemma4": {**_PATTERNED, **_LENGTHS},
    "gemma4-assistant": {**_PATTERNED, **_LENGTHS, "embedding_length_out": 32},
    "glm-dsa": {**_LATENT, **_EXPERTS, "attention.indexer.types": [True, True, True]},
    "glm4moe": _EXPERTS,
    "gpt-oss": {**_EXPERTS, **_WINDOW, **_LENGTHS},
    "gpt2": _HEADS_ALIKE,
    "gptneox": _HEADS_ALIKE,
    "granite_swa": _PATTERNED,
    "granitehybrid": {**_ALTERNATING, "ssm.time_step_rank": 8},
    "granitemoe": _EXPERTS,
    "graniteswitch": {
        "adapters.count": 2,
        "adapters.token_ids_activate": [300, 301],
        "adapters.token_ids_substitute": [302, 303],
    },
    "grok": _EXPERTS,
    "grovemoe": _EXPERTS,
    "hy_v4": {**_LATENT, "expert_gating_func": 2},
    "hrm_text": {"block_count": 6, "hrm.h_cycles": 1, "hrm.l_cycles": 2, "hrm.layers_per_stack": 2},
    "hunyuan-moe": _EXPERTS,
    "jamba": {**_ALTERNATING, **_EXPERTS},
    "jina-bert-v2": _BERT,
    "jina-bert-v3": _BERT,
    "kimi-k3": _LATENT_HYBRID,
    "kimi-linear": _LATENT_HYBRID,
    "glm5-next": {**_LATENT_HYBRID, "attention.key_length": 32, "rope.dimension_count": 0},
    "laguna": _EXPERTS,
    "lfm2": _ALTERNATING,
    "lfm2moe": {**_ALTERNATING, **_EXPERTS, "leading_dense_block_count": 1},
    "llada-moe": _EXPERTS,
    "llama-embed": {"pooling_type": 1},
    "llama4": {"block_count": 4, "expert_count": 4, "expert_used_count": 1, "interleave_moe_layer_step": 2},
    "mamba": {**_ATTENTION_FREE, "feed_forward_length": 0},
    "mamba2": {**_ATTENTION_FREE, "feed_forward_length": 0, "ssm.time_step_rank": 8},
    "maple": {**_PATTERNED, **_EXPERTS},
    "mimo2": _PATTERNED,
    "minicpm3": _HEADS_ALIKE,
    "minimax-01": {**_EXPERTS, "block_count": 4, "full_attention_interval": 2},
    "minimax-m2": {**_EXPERTS, "expert_gating_func": 2},
    "minimax-m3": _EXPERTS,
    "mistral4": {**_LATENT, **_EXPERTS},
    "modern-bert": {**_WINDOW, "attention.causal": False, "pooling_type": 1},
    "mpt": _HEADS_ALIKE,
    "nemotron_h": _NEMOTRON_H,
    "nemotron_h_moe": {
        **_NEMOTRON_H,
        **_EXPERTS,
        "expert_feed_forward_length": 64,
        "expert_shared_feed_forward_length": 64,
    },
    "neo-bert": _BERT,
    "nomic-bert": _BERT,
    "nomic-bert-moe": {**_BERT, **_EXPERTS, "moe_every_n_layers": 2},
    "olmoe": _HEADS_ALIKE,
    "openelm": {**_LENGTHS, **_LAYER_BY_LAYER},
    "paddleocr": _SECTIONS,
    "phi2": _HEADS_ALIKE,
    "phi3": {**_WINDOW, "rope.scaling.original_context_length": 512},
    "phimoe": {**_EXPERTS, "rope.scaling.original_context_length": 512},
    "plamo2": {**_ALTERNATING, "ssm.group_count": 0, "ssm.time_step_rank": 8},
    "plm": {**_HEADS_ALIKE, "attention.key_length": 32, "attention.value_length": 16},
    "qwen": {**_HEADS_ALIKE, "feed_forward_length": 256},
    "qwen2vl": _SECTIONS,
    "qwen35": _DELTA_NET,
    "qwen35moe": {**_DELTA_NET, **_EXPERTS},
    "qwen3next": {**_DELTA_NET, **_EXPERTS},
    "qwen3vl": _SECTIONS,
    "qwen4exp": {**_DELTA_NET, **_EXPERTS, "hyper_connection.count": 4},
    "rwkv6": _ATTENTION_FREE,
    "rwkv7": {**_ATTENTION_FREE, "attention.gate_lora_rank": 32, "wkv.head_size": 64},
    "rwkv6qwen2": {"token_shift_count": 1},
    "smallthinker": {**_EXPERTS, "expert_gating_func": 2, "expert_feed_forward_length": 64},
    "spark2_5": _PATTERNED,
    "starcoder": {"attention.head_count_kv": 1},
    "step35": _PATTERNED,
    "t5": {**_HEADS_ALIKE, **_LENGTHS},
    "t5encoder": {**_HEADS_ALIKE, **_LENGTHS},
    "wavtokenizer-dec": {
        "attention.causal": False,
        "block_count": 6,
        "convnext.block_count": 2,
        "convnext.embedding_length": 64,
        "features_length": 32,
        "posnet.block_count": 6,
        "posnet.embedding_length": 64,
    },
}

_Shapes = dict[str, list[int]]
_CONVOLUTION: _Shapes = {f"blk.{i}.ssm_conv1d.bias": [160] for i in range(4)}
_DELTA_NET_GATES: _Shapes = {
    f"blk.{i}.attn_{name}.weight": [64, width]
    for i in range(3)
    for name, width in (("qkv", 128), ("gate", 64))
}

# What reads a rank off the states of a text, in models that pool so.
RANK_HEAD: _Shapes = {
    "cls.weight": [64, 64],
    "cls.bias": [64],
    "cls.output.weight": [64, 1],
    "cls.output.bias": [1],
}

# Tensors, with shapes (innermost first), that a loader takes for granted or makes do without.
SHAPES: dict[str, _Shapes] = {
    "falcon-h1": {name: shape for name, shape in _CONVOLUTION.items() if name[4] in "01"},
    "granitehybrid": {name: shape for name, shape in _CONVOLUTION.items() if name[4] in "02"},
    "jina-bert-v2": {f"blk.{i}.ffn_up.weight": [64, 128] for i in range(2)},
    "laguna": {f"blk.{i}.attn_gate.weight": [64, 4] for i in range(2)},
    "nemotron_h": {name: shape for name, shape in _CONVOLUTION.items() if name[4] in "03"},
    "nemotron_h_moe": {name: shape for name, shape in _CONVOLUTION.items() if name[4] in "03"},
    "qwen35": _DELTA_NET_GATES,
    "qwen35moe": _DELTA_NET_GATES,
    "qwen3next": _DELTA_NET_GATES,
    "phi3": {f"blk.{i}.attn_qkv.weight": [64, 128] for i in range(2)},
    "pockettts": {f"blk.{i}.attn_qkv.weight": [64, 128] for i in range(2)},
    "rwkv6": {f"blk.{i}.time_mix_lerp_{part}.weight": [64, 1, 1] for i in range(2) for part in "wkvrg"},
    "t5": {f"{side}.blk.0.attn_rel_b.weight": [4, 32] for side in ("enc", "dec")},
    "t5encoder": {"enc.blk.0.attn_rel_b.weight": [4, 32]},
}
