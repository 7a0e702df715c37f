"""Synthetic models: GGUF files of real shapes and random weights that llama.cpp loads and runs.

Speed and memory do not depend on what weights say, so these stand in for real models wherever no
download is wanted. Their text is made-up words; the same seed gives the same file, byte for byte.

    flexserve synth --shape tinyllama-1.1b --quant q4_0 -o model.gguf
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType

from flexserve.harness.blocks import fits, random_weights
from flexserve.harness.shapes import Shape
from flexserve.harness.vocabulary import CHAT_TEMPLATE, Vocabulary, make_vocabulary

Progress = Callable[[int, int], None]  # bytes of tensors written, bytes of tensors in all

_F32 = GGMLQuantizationType.F32
_EPSILON = 1e-5
_GEMMA_GAIN = 16.0  # of its layers: they have to outweigh an embedding that Gemma scales up by √width
_LOGIT_SIGMA = 4.0  # of the logits: spread enough that the best token is clear, without overflowing anything

QUANTS: dict[str, LlamaFileType] = {
    "f16": LlamaFileType.MOSTLY_F16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
}


@dataclasses.dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor to be written; `sigma` 0 means a constant, which only F32 tensors can be."""

    name: str
    shape: tuple[int, ...]  # outermost first; rows of the last
    kind: GGMLQuantizationType
    sigma: float
    constant: float = 0.0

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])


def write_synthetic(
    path: Path, shape: Shape, quant: str, *, seed: int = 0, progress: Progress | None = None
) -> None:
    """Write a model of `shape` with weights in `quant` ("f16", "q8_0", "q4_0", "q4_k_m") to `path`.

    Writes beside `path` first and renames, so an interrupted run leaves no half of a model. Holds
    one tensor in memory at a time. Raises KeyError for an unknown quant, OSError as files do.
    """
    file_type = QUANTS[quant]
    vocabulary = make_vocabulary(shape.vocabulary)
    tensors = list(_tensors(shape, quant))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        writer = GGUFWriter(partial, shape.architecture)
        _add_metadata(writer, shape, file_type)
        _add_vocabulary(writer, vocabulary)
        _write_tensors(writer, tensors, vocabulary.unspoken, seed, progress)
        writer.close()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_tensors(
    writer: GGUFWriter, tensors: Sequence[_Tensor], unspoken: int, seed: int, progress: Progress | None
) -> None:
    sizes = []
    for tensor in tensors:
        sample = _encode(np.random.default_rng(0), dataclasses.replace(tensor, shape=(1, tensor.shape[-1])))
        size = sample.nbytes * tensor.rows
        sizes.append(size)
        if tensor.kind is _F32:
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size)
        else:
            byte_shape = (*tensor.shape[:-1], sample.nbytes)
            writer.add_tensor_info(tensor.name, byte_shape, np.dtype(np.uint8), size, raw_dtype=tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    done, total = 0, sum(sizes)
    for tensor, size in zip(tensors, sizes, strict=True):
        rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(tensor.name.encode())]))
        data = _encode(rng, tensor)
        if tensor.name in {"output.weight", "token_embd.weight"}:
            data[:unspoken] = 0  # all-zero blocks are zeros: these tokens never win
        writer.write_tensor_data(data)
        done += size
        if progress is not None:
            progress(done, total)


def _encode(rng: np.random.Generator, tensor: _Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    rows, columns = tensor.rows, tensor.shape[-1]
    if tensor.kind is not _F32:
        return random_weights(rng, rows, columns, tensor.kind, tensor.sigma)
    if tensor.sigma:
        return (tensor.sigma * rng.standard_normal((rows, columns))).astype(np.float32)
    return np.full((rows, columns), tensor.constant, dtype=np.float32)


def _tensors(shape: Shape, quant: str) -> Iterator[_Tensor]:
    """Yield the tensors of a model in the order in which files usually have them."""
    kinds = _Kinds(shape, quant)
    width = shape.width
    # Both spread the logits by _LOGIT_SIGMA: through the last norm, which leaves the embedding small
    # beside what the layers add to it. Were it large, a tied model would repeat its last token for ever.
    unit = 1 / math.sqrt(width)
    yield _Tensor("token_embd.weight", (shape.vocabulary, width), kinds.embedding(), unit)
    for layer in range(shape.layers):
        for tensor in _layer(shape, kinds, layer):
            yield dataclasses.replace(tensor, name=f"blk.{layer}.{tensor.name}.weight")
        if shape.architecture == "qwen2":
            for name, size in (("q", shape.q_width), ("k", shape.kv_width), ("v", shape.kv_width)):
                yield _Tensor(f"blk.{layer}.attn_{name}.bias", (size,), _F32, 0.1)
    yield _norm("output_norm.weight", width, _LOGIT_SIGMA)
    if not shape.tied:
        yield _Tensor("output.weight", (shape.vocabulary, width), kinds.output(), unit)


def _layer(shape: Shape, kinds: _Kinds, layer: int) -> Iterator[_Tensor]:
    width, ffn = shape.width, shape.ffn

    def matrix(name: str, rows: int, columns: int, experts: int = 0) -> _Tensor:
        # Unit gain: what goes in with deviation 1 comes out with deviation 1, at any width.
        dimensions = (experts, rows, columns) if experts else (rows, columns)
        return _Tensor(name, dimensions, kinds.matrix(name, columns, layer), 1 / math.sqrt(columns))

    yield _norm("attn_norm", width)
    if shape.architecture == "phi3":
        yield matrix("attn_qkv", shape.q_width + 2 * shape.kv_width, width)
    else:
        yield matrix("attn_q", shape.q_width, width)
        yield matrix("attn_k", shape.kv_width, width)
        yield matrix("attn_v", shape.kv_width, width)
    if shape.architecture in {"qwen3", "qwen3moe"}:
        yield _norm("attn_q_norm", shape.head_size)
        yield _norm("attn_k_norm", shape.head_size)
    yield matrix("attn_output", width, shape.q_width)
    if shape.architecture == "gemma2":
        yield _norm("post_attention_norm", width, _GEMMA_GAIN)
        yield _norm("post_ffw_norm", width, _GEMMA_GAIN)
    yield _norm("ffn_norm", width)
    if shape.experts:
        yield _Tensor("ffn_gate_inp", (shape.experts, width), _F32, 1 / math.sqrt(width))
        yield matrix("ffn_gate_exps", ffn, width, shape.experts)
        yield matrix("ffn_up_exps", ffn, width, shape.experts)
        yield matrix("ffn_down_exps", width, ffn, shape.experts)
    elif shape.architecture == "phi3":
        yield matrix("ffn_up", 2 * ffn, width)
        yield matrix("ffn_down", width, ffn)
    else:
        yield matrix("ffn_gate", ffn, width)
        yield matrix("ffn_up", ffn, width)
        yield matrix("ffn_down", width, ffn)


def _norm(name: str, width: int, weight: float = 1.0) -> _Tensor:
    return _Tensor(name, (width,), _F32, 0.0, weight)


class _Kinds:
    """Which format each matrix gets: the rules of llama.cpp's own quantizer, as far as files show them."""

    def __init__(self, shape: Shape, quant: str) -> None:
        self._shape = shape
        self._base = {
            "f16": GGMLQuantizationType.F16,
            "q8_0": GGMLQuantizationType.Q8_0,
            "q4_0": GGMLQuantizationType.Q4_0,
            "q4_k_m": GGMLQuantizationType.Q4_K,
        }[quant]
        self._mixed = quant == "q4_k_m"
        self._four_bits = quant in {"q4_0", "q4_k_m"}

    def output(self) -> GGMLQuantizationType:
        """Return the format of the output matrix: six bits where the others have four."""
        better = GGMLQuantizationType.Q6_K if self._four_bits else self._base
        return self._that_fits(better, self._shape.width)

    def embedding(self) -> GGMLQuantizationType:
        """Return the format of the token embedding, which may be the output matrix too."""
        return self.output() if self._shape.tied else self._that_fits(self._base, self._shape.width)

    def matrix(self, name: str, columns: int, layer: int) -> GGMLQuantizationType:
        """Return the format of a layer's matrix with rows of `columns` weights."""
        sensitive = name in {"attn_v", "ffn_down", "ffn_down_exps"}
        if self._mixed and sensitive and self._has_more_bits(layer):
            return self._that_fits(GGMLQuantizationType.Q6_K, columns)
        return self._that_fits(self._base, columns)

    def _has_more_bits(self, layer: int) -> bool:
        eighth = self._shape.layers // 8
        return layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2

    @staticmethod
    def _that_fits(kind: GGMLQuantizationType, columns: int) -> GGMLQuantizationType:
        return kind if fits(columns, kind) else GGMLQuantizationType.Q8_0


def _add_metadata(writer: GGUFWriter, shape: Shape, file_type: LlamaFileType) -> None:
    writer.add_type("model")
    writer.add_name(shape.name)
    writer.add_description("Random weights of a real model's shape, made by flexserve.harness.synth")
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(_EPSILON)
    writer.add_vocab_size(shape.vocabulary)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.experts_used)
        writer.add_expert_feed_forward_length(shape.ffn)
    if shape.architecture == "gemma2":
        writer.add_attn_logit_softcapping(50.0)
        writer.add_final_logit_softcapping(30.0)
        writer.add_sliding_window(shape.context // 2)
    if shape.architecture == "phi3":
        writer.add_sliding_window(shape.context)
        writer.add_rope_scaling_orig_ctx_len(shape.context)


def _add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    writer.add_bos_token_id(vocabulary.bos)
    writer.add_eos_token_id(vocabulary.eos)
    writer.add_eot_token_id(vocabulary.end_of_turn)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
