"""What a GGUF header says of its model, checked where llama.cpp would not say no but abort.

llama.cpp refuses much by an error, and aborts its process on the rest: GGML_ASSERT, an exception
that nobody catches, a null pointer. The rules below are those of its sources (src/llama-model.cpp,
src/llama-vocab.cpp and ggml's operations, of the version that is pinned) that do not depend on the
architecture, and graphs.py has those that do; flexserve.testing.header_fuzz found them. What they let
through is opened and computed once in a process of its own when a model is added, so a file that knows
another way ends no server.
"""

from __future__ import annotations

import array
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from flexserve.trusted.store.graphs import check_graph
from flexserve.trusted.store.values import MAX_WIDTH, Values, bad

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
MAX_HEADS = 1 << 14
TOKENIZERS = frozenset({"llama", "bert", "gpt2", "hybriddna", "whitespace", "t5", "rwkv", "plamo2", "gemma4"})
ROPE_SCALINGS = frozenset({"none", "linear", "yarn", "longrope"})
_NO_HEADS = frozenset({"mamba", "mamba2", "rwkv6", "rwkv7", "arwkv7"})  # wholly recurrent
_F32, _I32 = 0, 26
_BYTE = 6  # type of a token that stands for a byte, "<0x0A>"
_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_GATINGS = 4  # of the functions that choose experts, which count from 1
_NO_WEIGHTS = frozenset({24, 25, 26, 27, 28, 9, 15})  # I8, I16, I32, I64, F64; Q8_1 and Q8_K, of activations
# What ggml adds, scales or convolves with has to be F32; llama.cpp's own quantizer leaves it so.
_PLAIN = re.compile(
    r"norm\b|norm_|^token_types\b|\.bias$|ssm_(a|d|conv1d|dt)\b|shortconv\.conv\.|sinks|rel_b\.|\.scale$"
)


class Tensor(Protocol):
    """What is read of a tensor (flexserve.trusted.store.gguf.TensorInfo has it)."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def type(self) -> int:
        """Its ggml type."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in elements, fastest dimension first."""


def check_architecture(architecture: str, metadata: Mapping[str, object], tensors: Sequence[Tensor]) -> None:
    """Raise CallerError (code "bad_gguf") for a model that would abort llama.cpp."""
    values = Values(architecture, metadata)
    layers = values.number("block_count", 1, MAX_LAYERS)
    values.number("nextn_predict_layers", 0, layers if layers is not None else MAX_LAYERS)
    values.number("embedding_length", 1, MAX_WIDTH)
    values.number("embedding_length_out", 1, MAX_WIDTH)
    _check_experts(values)
    _check_heads(values, architecture)
    _check_rope(values)
    for suffix in (
        "attention.layer_norm_epsilon",
        "attention.layer_norm_rms_epsilon",
        "attention.group_norm_epsilon",
    ):
        values.real(suffix, 0.0, 1.0)
    _check_vocabulary(metadata, values)
    check_graph(architecture, values, {tensor.name for tensor in tensors})
    for tensor in tensors:
        _check_tensor(tensor)


def _check_experts(values: Values) -> None:
    experts = values.number("expert_count", 0, MAX_EXPERTS) or 0
    used = values.number("expert_used_count", 0, MAX_EXPERTS) or 0
    groups = values.number("expert_group_count", 0, MAX_EXPERTS) or 0
    values.number("expert_gating_func", 1, _GATINGS)
    if used > experts or (experts and not used):
        raise bad(f"it uses {used} of {experts} experts")
    if groups and groups >= experts:
        raise bad(f"its {experts} experts are in {groups} groups")
    if groups > 1:
        chosen = values.number("expert_group_used_count", 0, MAX_EXPERTS) or 0
        if experts % groups or not 0 < chosen < groups:
            raise bad(f"it uses {chosen} of {groups} groups of {experts} experts")


def _check_heads(values: Values, architecture: str) -> None:
    heads = values.all("attention.head_count")
    kv_heads = values.all("attention.head_count_kv")
    values.number("attention.head_count", 0, MAX_HEADS)
    values.number("attention.head_count_kv", 0, MAX_HEADS)
    needs_heads = bool(heads or values.all("block_count")) and architecture not in _NO_HEADS
    if needs_heads and not any(heads):
        raise bad("its attention has no heads")
    for head, kv in zip(heads, kv_heads * len(heads) if len(kv_heads) == 1 else kv_heads, strict=False):
        if kv and head % kv:
            raise bad(f"its {head} heads cannot share {kv} heads of keys and values")
    for size in ("key_length", "value_length"):
        for form in ("", "_swa", "_mla"):
            values.number(f"attention.{size}{form}", 1, MAX_WIDTH)
    width, key = values.number("embedding_length", 1, MAX_WIDTH), values.all("attention.key_length")
    if width and not key and any(head > width for head in heads):
        raise bad("it has more heads than its width")


def _check_rope(values: Values) -> None:
    scaling = values.value("rope.scaling.type")
    if isinstance(scaling, str) and scaling not in ROPE_SCALINGS:
        raise bad(f"its rope.scaling.type is {scaling[:64]!r}, which nobody knows")
    for suffix in ("rope.dimension_count", "rope.dimension_count_swa"):
        turned = values.number(suffix, 0, MAX_WIDTH)
        if turned is not None and turned % 2:
            raise bad(f"its {suffix} is {turned}, which is odd")
    head, turned = values.head_size(), values.number("rope.dimension_count", 0, MAX_WIDTH)
    if head and turned is not None and turned > head:
        raise bad(f"its rope.dimension_count is {turned}, and its heads have {head} dimensions")
    sections = values.all("rope.dimension_sections")
    if sections and (min(sections) < 0 or not any(sections[:3]) or sum(sections) > (head or MAX_WIDTH)):
        raise bad("its rope.dimension_sections are no division of a head")
    for suffix in ("rope.freq_base", "rope.freq_base_swa"):
        values.real(suffix, 1e-30, 1e30)


def _check_vocabulary(metadata: Mapping[str, object], values: Values) -> None:
    """Check what llama.cpp looks up in a vocabulary without looking whether it is there."""
    kind, tokens = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.tokens")
    if kind is None:
        return  # llama.cpp says so
    if not isinstance(kind, str) or kind not in TOKENIZERS:
        raise bad(f"its tokenizer is {str(kind)[:64]!r}, which nobody knows")
    if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
        raise bad("its vocabulary has no tokens")
    for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        companion = metadata.get(key)
        if companion is not None and not (
            isinstance(companion, array.array) and len(companion) == len(tokens)
        ):
            raise bad(f"its {key} are not one for each token")
    _check_bytes(kind, [str(token) for token in tokens], metadata.get("tokenizer.ggml.token_type"))
    for key, value in metadata.items():
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
            number = value if isinstance(value, int) else -1
            if not 0 <= number < len(tokens) and number != 0xFFFF_FFFF:
                raise bad(f"its {key} is no token of its vocabulary")
    count = values.number("vocab_size", 0, MAX_WIDTH << 4)
    if count and count != len(tokens):
        raise bad(f"its vocabulary has {len(tokens)} tokens, and its vocab_size is {count}")


def _check_bytes(tokenizer: str, tokens: list[str], types: object) -> None:
    """Check the tokens that stand for bytes, which unknown characters of a text become."""
    if tokenizer == "llama" and not _BYTES.issubset(tokens):
        raise bad("its vocabulary has no tokens for bytes")
    if isinstance(types, array.array):
        spelled = tokenizer not in ("bert", "rwkv", "plamo2")
        for token, its_type in zip(tokens, types, strict=True):
            if its_type == _BYTE and not (spelled and _BYTE_TOKEN.fullmatch(token)):
                raise bad("a token of its vocabulary is of the type of bytes, and is none")


def _check_tensor(tensor: Tensor) -> None:
    name, kind = tensor.name, tensor.type
    if kind in _NO_WEIGHTS and not (kind == _I32 and "tid2eid" in name):
        raise bad(f"tensor {name[:64]!r} is of type {kind}, which is none of weights")
    if kind != _F32 and (len(tensor.shape) == 1 or _PLAIN.search(name)):
        raise bad(f"tensor {name[:64]!r} is not of type F32, as a norm or a bias has to be")
