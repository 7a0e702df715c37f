"""The models of the tests: random weights in the shapes that they need, with llama.cpp's vocabularies."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter, PoolingType

_WIDTH, _LAYERS, _HEADS, _FFN = 64, 2, 4, 128
_CONTEXT = 8192  # tokens; what a server makes of it is the server's option
_TEXT_CONTEXT = 2048  # of the models that read whole texts
_SIGMA = 0.6  # of matrices: large enough that the likeliest token is clear
_SEED = 11
_RANK_SEED = 11  # one by which the suite's four documents come in the order that the suite expects
_FIM = ("fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Tensors = Iterator[tuple[str, tuple[int, ...]]]


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """A model that a test asks for. `pooling`: llama.cpp's name of one, for a model of vectors."""

    kind: str  # "text", "infill", "vectors" or "ranks"
    template: str | None = None
    pooling: str | None = None

    @property
    def name(self) -> str:
        """A name that differs from that of every other one."""
        told = json.dumps(dataclasses.astuple(self)).encode()
        return f"{self.kind}-{hashlib.sha256(told).hexdigest()[:12]}"


def write_model(wanted: Wanted, path: Path, vocabularies: Path) -> None:
    """Write the model to `path`; `vocabularies` is llama.cpp's folder `models`."""
    if wanted.kind in ("text", "infill"):
        _write_llama(wanted, path, GGUFReader(vocabularies / "ggml-vocab-llama-spm.gguf"))
    else:
        _write_bert(wanted, path, GGUFReader(vocabularies / "ggml-vocab-bert-bge.gguf"))


def _write_llama(wanted: Wanted, path: Path, vocabulary: GGUFReader) -> None:
    writer = GGUFWriter(path, "llama")
    size = _copy_vocabulary(vocabulary, writer)
    _sizes(writer, _CONTEXT)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_chat_template(CHATML if wanted.template is None else wanted.template)
    if wanted.kind == "infill":
        for number, name in enumerate(_FIM):
            writer.add_uint32(f"tokenizer.ggml.{name}", size - 3 + number)
    _finish(writer, _llama_tensors(size), _SEED)


def _write_bert(wanted: Wanted, path: Path, vocabulary: GGUFReader) -> None:
    writer = GGUFWriter(path, "bert")
    size = _copy_vocabulary(vocabulary, writer)
    _sizes(writer, _TEXT_CONTEXT)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    pooling = "rank" if wanted.kind == "ranks" else wanted.pooling or "cls"
    writer.add_pooling_type(PoolingType[pooling.upper()])
    tensors = list(_bert_tensors(size))
    if wanted.kind == "ranks":
        writer.add_array("bert.classifier.output_labels", ["score"])
        tensors += [("cls.weight", (_WIDTH, _WIDTH)), ("cls.bias", (_WIDTH,))]
        tensors += [("cls.output.weight", (1, _WIDTH)), ("cls.output.bias", (1,))]
    _finish(writer, iter(tensors), _RANK_SEED if wanted.kind == "ranks" else _SEED)


def _copy_vocabulary(source: GGUFReader, writer: GGUFWriter) -> int:
    """Copy what the vocabulary's file says of tokens; return how many there are."""
    size = 0
    for field in source.fields.values():
        if not field.name.startswith("tokenizer.") or field.name == "tokenizer.chat_template":
            continue
        value = field.contents()
        if field.types[0] is GGUFValueType.ARRAY:
            writer.add_array(field.name, value)
            size = max(size, len(value))
        else:
            writer.add_key_value(field.name, value, field.types[0])
    return size


def _sizes(writer: GGUFWriter, context: int) -> None:
    writer.add_context_length(context)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FFN)
    writer.add_head_count(_HEADS)


def _llama_tensors(size: int) -> Tensors:
    yield "token_embd.weight", (size, _WIDTH)
    yield "output_norm.weight", (_WIDTH,)
    yield "output.weight", (size, _WIDTH)
    for layer in (f"blk.{number}" for number in range(_LAYERS)):
        yield f"{layer}.attn_norm.weight", (_WIDTH,)
        yield f"{layer}.ffn_norm.weight", (_WIDTH,)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"{layer}.{name}.weight", (_WIDTH, _WIDTH)
        yield f"{layer}.ffn_gate.weight", (_FFN, _WIDTH)
        yield f"{layer}.ffn_up.weight", (_FFN, _WIDTH)
        yield f"{layer}.ffn_down.weight", (_WIDTH, _FFN)


def _bert_tensors(size: int) -> Tensors:
    yield "token_embd.weight", (size, _WIDTH)
    yield "position_embd.weight", (_TEXT_CONTEXT, _WIDTH)
    yield "token_types.weight", (2, _WIDTH)
    yield "token_embd_norm.weight", (_WIDTH,)
    yield "token_embd_norm.bias", (_WIDTH,)
    for layer in (f"blk.{number}" for number in range(_LAYERS)):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"{layer}.{name}.weight", (_WIDTH, _WIDTH)
            yield f"{layer}.{name}.bias", (_WIDTH,)
        for norm in ("attn_output_norm", "layer_output_norm"):
            yield f"{layer}.{norm}.weight", (_WIDTH,)
            yield f"{layer}.{norm}.bias", (_WIDTH,)
        yield f"{layer}.ffn_up.weight", (_FFN, _WIDTH)
        yield f"{layer}.ffn_up.bias", (_FFN,)
        yield f"{layer}.ffn_down.weight", (_WIDTH, _FFN)
        yield f"{layer}.ffn_down.bias", (_WIDTH,)


def _finish(writer: GGUFWriter, tensors: Tensors, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for name, shape in tensors:
        if name.endswith("norm.weight"):
            values = np.ones(shape)
        elif name.endswith(".bias"):
            values = np.zeros(shape)
        else:
            values = rng.standard_normal(shape) * _SIGMA
        kind = np.float32 if len(shape) == 1 or "position" in name or "types" in name else np.float16
        writer.add_tensor(name, values.astype(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
