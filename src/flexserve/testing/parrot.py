"""Models that say what a test wants them to say: a table of what follows what, as weights.

Each token's embedding is a unit vector, attention and feed-forward add nothing, and the output matrix
is the table. So greedy decoding gives the pieces one after the other, whatever the prompt, then ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType
from numpy.typing import NDArray

_END = 2
_CONTROLS = ("<unk>", "<s>", "</s>")
_LETTERS = ("▁", *map(chr, range(33, 127)))
_HEAD = 32  # elements of the one head of attention
_FFN = 32
_SURE = 2.0  # weight of the next piece; those after it get less, for grammars that forbid it
_UNSURE = 1.0
_AHEAD = 3  # pieces after the next one that may come in its place

Matrix = NDArray[np.float32]


def write_parrot(
    path: Path,
    pieces: Sequence[str | int],
    template: str,
    *,
    controls: Sequence[str] = (),
    context: int = 2048,
) -> None:
    """Write a llama model to `path` whose greedy answer is `pieces`, then the end of the text.

    A piece is one token: a text, or the number of a byte. No two may be the same; where a grammar forbids the
    next piece, one of the three after it comes, or else any other token. `template` is its chat
    template, `context` its length in tokens; pieces of `controls` are control tokens. Raises ValueError for
    a piece that comes twice.
    """
    tokens = [*_CONTROLS, *(f"<0x{byte:02X}>" for byte in range(256)), *_LETTERS, *controls]
    script = [_token(piece, tokens) for piece in pieces]
    if len(set(script)) < len(script):
        raise ValueError("A piece comes twice: what follows it would be unclear.")
    writer = GGUFWriter(path, "llama")
    writer.add_name("parrot")
    _add_vocabulary(writer, tokens, template, controls)
    width = -(-len(tokens) // _HEAD) * _HEAD
    _add_shape(writer, width, len(tokens), context)
    for name, matrix in _weights(width, len(tokens), [*script, _END]).items():
        writer.add_tensor(f"{name}.weight", matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _token(piece: str | int, tokens: list[str]) -> int:
    """Return the number of the token for `piece`, which is added to `tokens` when it is new."""
    if isinstance(piece, int):
        return len(_CONTROLS) + piece
    text = piece if piece in tokens else piece.replace(" ", "▁")
    if text not in tokens:
        tokens.append(text)
    return tokens.index(text)


def _add_vocabulary(
    writer: GGUFWriter, tokens: Sequence[str], template: str, controls: Sequence[str]
) -> None:
    bytes_end = len(_CONTROLS) + 256
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * bytes_end + [-1.0 - n for n in range(len(tokens) - bytes_end)])
    kinds = {True: TokenType.CONTROL, False: TokenType.NORMAL}
    writer.add_token_types([*types, *(kinds[token in controls] for token in tokens[bytes_end:])])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(_END)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(template)


def _add_shape(writer: GGUFWriter, width: int, vocabulary: int, context: int) -> None:
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_FFN)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_key_length(_HEAD)
    writer.add_value_length(_HEAD)
    writer.add_rope_dimension_count(_HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)


def _weights(width: int, vocabulary: int, script: Sequence[int]) -> dict[str, Matrix]:
    """Return the matrices by name; `script` are tokens, the end among them."""
    table = np.zeros((vocabulary, width), np.float32)
    places = {token: place for place, token in enumerate(script)}
    for token in range(vocabulary):
        coming = script[places.get(token, -1) + 1 :] or script[-1:]
        table[coming[0], token] = _SURE
        for rank, other in enumerate(coming[1 : 1 + _AHEAD]):
            table[other, token] = _UNSURE - 0.1 * rank
    nothing = {
        "attn_q": (_HEAD, width),
        "attn_k": (_HEAD, width),
        "attn_v": (_HEAD, width),
        "attn_output": (width, _HEAD),
        "ffn_gate": (_FFN, width),
        "ffn_up": (_FFN, width),
        "ffn_down": (width, _FFN),
    }
    ones = np.ones(width, np.float32)
    return {
        "token_embd": np.eye(vocabulary, width, dtype=np.float32),
        "output": table,
        "output_norm": ones,
        "blk.0.attn_norm": ones,
        "blk.0.ffn_norm": ones,
        **{f"blk.0.{name}": np.zeros(shape, np.float32) for name, shape in nothing.items()},
    }
