"""What the graphs of single architectures take for granted, checked where llama.cpp would abort on it.

Each rule is an assertion of llama.cpp's (src/models/NAME.cpp, src/llama-model.cpp or ggml's kernels, of
the version that is pinned), or an assumption that it makes without one and computes wrongly on.
"""

from __future__ import annotations

from collections.abc import Set

from flexserve.trusted.store.values import MAX_WIDTH, Values, bad

# Their whole heads turn, and heads of values are as wide as those of keys.
_WHOLE_HEADS = frozenset(
    {"apertus", "arcee", "arctic", "baichuan", "chameleon", "codeshell", "cogvlm", "cohere2moe", "dbrx",
     "deepseek", "dots1", "dream", "ernie4_5", "ernie4_5-moe", "exaone", "exaone-moe", "exaone4", "gpt-oss",
     "granite",
     "granite_swa", "granitemoe", "graniteswitch", "grok", "grovemoe", "hunyuan-dense", "hunyuan-moe",
     "hunyuan_vl", "hy_v3", "internlm2", "jais2", "llada", "llada-moe", "llama4", "maincoder", "mellum",
     "minicpm", "mistral3", "olmo", "olmo2", "olmoe", "orion", "paddleocr", "pangu-embedded", "plamo",
     "pockettts", "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3tts", "qwen3vl", "qwen3vlmoe",
     "rnd1", "seed_oss", "smallthinker", "smollm3", "starcoder2", "talkie", "xverse"}
)  # fmt: skip
_EQUAL_HEADS = _WHOLE_HEADS | {
    "gemma4", "maple", "openelm", "afmoe", "bailingmoe2", "bloom", "chatglm", "cohere2", "command-r",
    "falcon", "glm4", "glm4moe", "gpt2", "gptneox", "jais", "laguna", "llama", "mpt", "muse-glimmer",
    "nanbeige", "nemotron", "phi2", "phi3", "qwen", "qwen35", "qwen35moe", "qwen3next", "qwen4exp", "refact",
    "spark2_5", "stablelm", "starcoder",
}  # fmt: skip
_ONLY_EXPERTS = frozenset({"bailingmoe2", "glm4moe", "grovemoe", "lfm2moe", "llada-moe", "smallthinker"})
# Tokens that each layer of a wholly recurrent model looks back.
_SHIFTS = {"rwkv6": 2, "rwkv7": 2, "rwkv6qwen2": 1, "arwkv7": 1}
# ggml's kernel of these takes a head in steps of 64 numbers (32 with AVX2) and has none for what is left.
_STEPPING_HEADS, _STEP = frozenset({"rwkv7", "arwkv7"}), 64
_DOUBLE_WIDTH = frozenset({"jamba", "granitehybrid"})
_MAMBA = frozenset({"mamba", "jamba"})
_MAMBA_2 = frozenset({"mamba2", "falcon-h1", "granitehybrid", "nemotron_h", "nemotron_h_moe", "plamo2"})
# ggml's kernel of _MAMBA for SVE takes up to so many numbers at once, and has none for what is left.
_LANES = 16
_DELTA_NETS = frozenset({"qwen3next", "qwen35", "qwen35moe", "qwen4exp"})
_MAX_KERNEL = 1024  # of a convolution over tokens
_MAX_WINDOW = 1 << 24  # tokens; llama.cpp multiplies it by the number of sequences, in 32 bits
# Tensors that loading does without and computing does not: of all models, and, of blocks that have one
# tensor, one of others.
_NEEDED = {
    "t5": ("enc.blk.0.attn_rel_b.weight", "dec.blk.0.attn_rel_b.weight"),
    "t5encoder": ("enc.blk.0.attn_rel_b.weight",),
}
_QKV = (".attn_norm.weight", (".attn_qkv.weight", ".attn_q.weight"))
_DELTA_NET_QKV = (".ssm_conv1d.weight", (".attn_qkv.weight", ".ssm_in.weight"))
_DELTA_NET_GATE = (".ssm_conv1d.weight", (".attn_gate.weight", ".ssm_in.weight"))
_NEEDED_BESIDE = {
    "phi3": (_QKV,),
    "pockettts": (_QKV,),
    "qwen35": (_DELTA_NET_QKV, _DELTA_NET_GATE),
    "qwen35moe": (_DELTA_NET_QKV, _DELTA_NET_GATE),
    "qwen3next": (_DELTA_NET_QKV, _DELTA_NET_GATE),
    "rwkv6": ((".time_mix_w1.weight", (".time_mix_lerp_fused.weight", ".time_mix_lerp_w.weight")),),
}
# Their vectors may be shorter than they are wide, or are made so by llama.cpp whatever the file says.
_OTHER_VECTORS = frozenset(
    {"lfm2", "lfm2moe", "gemma4-assistant", "wavtokenizer-dec", "deepseek4", "qwen4exp"}
)


def check_graph(architecture: str, values: Values, names: Set[str]) -> None:
    """Raise CallerError (code "bad_gguf") for a model whose graph would abort, or be computed wrongly.

    `names` are those of its tensors.
    """
    _check_heads(architecture, values)
    _check_windows(values)
    _check_recurrence(architecture, values)
    _check_states(architecture, values)
    _check_names(architecture, names)
    width, out = _one(values, "embedding_length"), _one(values, "embedding_length_out")
    if out and width != out and architecture not in _OTHER_VECTORS:
        raise bad(f"its embedding_length_out is {out}, and its vectors have {width} numbers")
    if architecture in _ONLY_EXPERTS and not values.number("expert_count", 0, MAX_WIDTH):
        raise bad("it has no experts, and an architecture that consists of them")
    layers = values.number("block_count", 1, MAX_WIDTH) or 0
    for part in ("posnet", "convnext"):
        values.number(f"{part}.block_count", 0, layers)
    if architecture == "hrm_text":
        stack, high, low = (
            _one(values, f"hrm.{key}") for key in ("layers_per_stack", "h_cycles", "l_cycles")
        )
        if stack * high * (low + 1) != layers:
            raise bad("its block_count is not that of its cycles")
    if architecture == "bailingmoe3":
        values.real("kda.gate_lower_bound", float("-inf"), -1e-30)


def _one(values: Values, suffix: str, default: int = 0) -> int:
    """Return the largest number under a key; `default`: there is none."""
    found = values.number(suffix, 0, 1 << 32)
    return default if found is None else found


def _check_names(architecture: str, names: Set[str]) -> None:
    missing = [name for name in _NEEDED.get(architecture, ()) if name not in names]
    for beside, others in _NEEDED_BESIDE.get(architecture, ()):
        blocks = (name.removesuffix(beside) for name in names if name.endswith(beside))
        missing += [block + others[0] for block in blocks if not any(block + o in names for o in others)]
    if missing:
        raise bad(f"tensor {min(missing)!r} is missing")


def _check_heads(architecture: str, values: Values) -> None:
    key, value = values.head_size(), values.head_size("value")
    turned = values.number("rope.dimension_count", 0, MAX_WIDTH)
    if architecture in _WHOLE_HEADS and None not in (key, turned) and turned != key:
        raise bad(
            f"its rope.dimension_count is {turned}, and its heads, which turn whole, have {key} dimensions"
        )
    if architecture in _EQUAL_HEADS and None not in (key, value) and key != value:
        raise bad(f"its heads have {key} dimensions of keys and {value} of values")
    heads, kv = values.all("attention.head_count"), values.all("attention.head_count_kv")
    if architecture == "deepseek2-ocr" and kv and kv != heads:
        raise bad("its heads do not each have their own keys and values")
    latent = values.number("attention.key_length_mla", 1, MAX_WIDTH)
    if latent is not None and turned is not None and latent <= turned:
        raise bad(f"its attention.key_length_mla is {latent}, of which {turned} turn")
    if latent is not None:  # what is cached is the latent vector, and what turns beside it
        rank = values.number("attention.kv_lora_rank", 1, MAX_WIDTH)
        if rank is not None and turned is not None and (key, value) != (rank + turned, rank):
            raise bad(
                f"its attention.key_length and value_length of {key} and {value} are not its latent vectors'"
            )


def _check_windows(values: Values) -> None:
    """Check that a model with a window has layers which keep to it."""
    window = values.number("attention.sliding_window", 0, _MAX_WINDOW)
    pattern = values.value("attention.sliding_window_pattern")
    if window and (pattern == 1 or (isinstance(pattern, list) and True not in pattern)):
        raise bad("it has a sliding window, and no layer that has one")
    values.number("attention.indexer.block_size", 1, MAX_WIDTH)


def _check_recurrence(architecture: str, values: Values) -> None:
    if architecture not in _SHIFTS:
        return
    head = _one(values, "wkv.head_size")
    step = _STEP if architecture in _STEPPING_HEADS else 1
    if head == 0 or head % step or _one(values, "embedding_length") % head:
        raise bad(f"its wkv.head_size is {head}, which llama.cpp cannot compute with")
    if _one(values, "token_shift_count", 2) != _SHIFTS[architecture]:
        raise bad(f"its token_shift_count is not {_SHIFTS[architecture]}")


def _check_states(architecture: str, values: Values) -> None:
    for kernel in ("ssm.conv_kernel", "shortconv.l_cache"):
        values.number(kernel, 2, _MAX_KERNEL)
    inner, state = (values.number(f"ssm.{key}", 1, MAX_WIDTH) for key in ("inner_size", "state_size"))
    heads = values.number("ssm.time_step_rank", 0, MAX_WIDTH)
    groups = values.number("ssm.group_count", 0, MAX_WIDTH)
    if inner is None or state is None:
        return
    if architecture in _DOUBLE_WIDTH and inner != 2 * _one(values, "embedding_length"):
        raise bad(f"its ssm.inner_size is {inner}, which is not twice its width")
    if architecture in _MAMBA and state % _LANES:
        raise bad(f"its ssm.state_size is {state}, which is not a multiple of {_LANES}")
    if architecture in _MAMBA_2 and (
        not heads or inner % heads or (groups and (inner % groups or heads % groups))
    ):
        raise bad(f"its ssm.inner_size of {inner} is no number of heads and groups")
    if architecture == "plamo2" and groups:
        raise bad("its ssm.group_count is not 0")
    if architecture in _DELTA_NETS and (not heads or not groups or heads % groups or inner != heads * state):
        raise bad(f"its ssm.inner_size of {inner} is no number of heads of {state}")
