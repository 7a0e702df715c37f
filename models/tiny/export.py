"""Writes a trained model as GGUF: matrices in Q8_0, norms in F32."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import gguf
from vocabulary import CHAT_TEMPLATE, END, SPECIALS, TURN_END, Vocabulary

if TYPE_CHECKING:
    from train import Llama

NAME = "FlexServe Tiny"
DESCRIPTION = "A very small chat model that knows FlexServe and nothing else; for demos and tests."


def write_gguf(path: Path, model: Llama, vocabulary: Vocabulary) -> None:
    """Write `model` and `vocabulary` to `path`; the same weights give the same bytes."""
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, model)
    _add_vocabulary(writer, vocabulary)
    for name, parameter in model.named_parameters():
        values = parameter.detach().float().numpy()
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: gguf.GGUFWriter, model: Llama) -> None:
    shape = model.shape
    writer.add_name(NAME)
    writer.add_description(DESCRIPTION)
    writer.add_license("apache-2.0")
    writer.add_languages(["en"])
    writer.add_size_label(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocab)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    spelled = vocabulary.tokens()
    kinds = [_kind(token) for token in spelled]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token or f"<|unused_{index}|>" for index, token in enumerate(spelled)])
    writer.add_token_types(kinds)
    writer.add_token_merges(vocabulary.merges())
    writer.add_bos_token_id(END)
    writer.add_eos_token_id(TURN_END)
    writer.add_eot_token_id(TURN_END)
    writer.add_pad_token_id(END)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _kind(token: str | None) -> gguf.TokenType:
    if token is None:
        return gguf.TokenType.UNUSED
    return gguf.TokenType.CONTROL if token in SPECIALS else gguf.TokenType.NORMAL
