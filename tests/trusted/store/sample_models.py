"""Small GGUF files made by hand, so that the reader is tested against the format, not a writer."""

from __future__ import annotations

import random
import struct

CANARY = b"canary-in-the-weights-"
METADATA_CANARY = "canary-in-the-metadata"

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10
TYPE_F32, TYPE_Q4_0 = 0, 2


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def string_pair(key: str, value: str | bytes) -> bytes:
    return pair(key, STRING, text(value))


def u32_pair(key: str, value: int) -> bytes:
    return pair(key, U32, struct.pack("<I", value))


def array_pair(key: str, kind: int, count: int, raw: bytes) -> bytes:
    return pair(key, ARRAY, struct.pack("<IQ", kind, count) + raw)


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


PAIRS = (
    string_pair("general.architecture", "llama"),
    string_pair("general.name", METADATA_CANARY),
    u32_pair("general.file_type", 2),
    u32_pair("llama.context_length", 2048),
    array_pair("tokenizer.ggml.tokens", STRING, 3, text("a") + text("b") + text("ü")),
    array_pair("tokenizer.ggml.scores", F32, 3, struct.pack("<3f", 0.5, 1, 2)),
    array_pair("flags", BOOL, 2, b"\0\1"),
    string_pair("tokenizer.chat_template", "{{ messages }}"),
)


def gguf_bytes(
    *,
    pairs: tuple[bytes, ...] = PAIRS,
    tensors: tuple[bytes, ...] | None = None,
    data: bytes | None = None,
    version: int = 3,
    magic: bytes = b"GGUF",
    pair_count: int | None = None,
    tensor_count: int | None = None,
    alignment: int = 32,
    weights: int = 64,
) -> bytes:
    """A GGUF of two tensors; `weights` (a multiple of 32) scales the first one."""
    if tensors is None:
        first = 4 * weights
        tensors = (
            tensor("token_embd.weight", (32, weights // 32), TYPE_F32, 0),
            tensor("blk.0.attn_q.weight", (32, 3), TYPE_Q4_0, -(-first // alignment) * alignment),
        )
        filler = random.Random(weights).randbytes(first - len(CANARY))
        data = (CANARY + filler).ljust(-(-first // alignment) * alignment, b"\0") + bytes(range(3 * 18))
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(pairs) if pair_count is None else pair_count,
    )
    head += b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + (data or b"")


def quiet(done: int, total: int) -> None:
    """A progress bar for nobody."""
