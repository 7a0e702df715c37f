from __future__ import annotations

import array
import ctypes
import struct
from collections.abc import Sequence
from pathlib import Path

import gguf as writer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_models import (
    ARRAY,
    BOOL,
    F32,
    METADATA_CANARY,
    PAIRS,
    STRING,
    TYPE_F32,
    U64,
    array_pair,
    gguf_bytes,
    pair,
    string_pair,
    tensor,
    text,
    u32_pair,
)

from flexserve.errors import CallerError
from flexserve.trusted.store import GgufHeader, parse_gguf
from flexserve.trusted.store import gguf as reader
from flexserve.trusted.store.ggml_types import FILE_TYPES, TENSOR_TYPES

ARCHITECTURE = PAIRS[0]


def parse(data: bytes) -> GgufHeader:
    def read(offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= len(data), "asked for bytes outside the file"
        return data[offset : offset + length]

    return parse_gguf(read, len(data))


def test_a_sound_header_is_read_in_full():
    data = gguf_bytes()
    header = parse(data)
    assert (header.version, header.alignment) == (3, 32)
    assert (header.architecture, header.name) == ("llama", METADATA_CANARY)
    assert (header.context_length, header.quantization) == (2048, "Q4_0")
    assert header.chat_template == "{{ messages }}"
    assert header.parameter_count == 64 + 96
    assert header.metadata["tokenizer.ggml.tokens"] == ["a", "b", "ü"]
    assert header.metadata["tokenizer.ggml.scores"] == array.array("f", [0.5, 1, 2])
    assert header.metadata["flags"] == [False, True]
    first, second = header.tensors
    assert (first.name, first.type, first.shape, first.size) == ("token_embd.weight", TYPE_F32, (32, 2), 256)
    assert (second.shape, second.size) == ((32, 3), 54)
    assert first.offset == header.data_offset
    assert header.data_offset % 32 == 0
    assert second.offset + second.size == len(data)


def test_what_is_long_can_be_left_out():
    whole = parse(gguf_bytes())
    short = whole.without_lists()
    left_out = {"tokenizer.ggml.tokens", "tokenizer.ggml.scores", "flags"}
    assert short.metadata == {key: value for key, value in whole.metadata.items() if key not in left_out}
    assert (short.tensors, short.chat_template) == (whole.tensors, whole.chat_template)


def test_what_a_header_does_not_say_is_none_or_derived():
    header = parse(gguf_bytes(pairs=(ARCHITECTURE,)))
    assert (header.name, header.chat_template, header.context_length) == (None, None, None)
    assert header.quantization == "F32"  # the type of most bytes


def test_version_2_and_another_alignment_are_read():
    header = parse(gguf_bytes(version=2, pairs=(*PAIRS, u32_pair("general.alignment", 64)), alignment=64))
    assert (header.version, header.alignment) == (2, 64)


def test_files_of_the_usual_writer_are_read(tmp_path: Path):
    path = tmp_path / "written.gguf"
    weights = np.random.default_rng(1).random((6, 64), dtype=np.float32)
    quantized = writer.quants.quantize(weights, writer.GGMLQuantizationType.Q4_0)
    out = writer.GGUFWriter(str(path), "llama")
    out.add_name("written")
    out.add_context_length(512)
    out.add_file_type(writer.LlamaFileType.MOSTLY_Q4_0)
    out.add_token_list([f"token {i}" for i in range(5000)])
    out.add_token_scores([0.25] * 5000)
    out.add_chat_template("{{ x }}")
    out.add_tensor("plain", weights)
    out.add_tensor("quantized", quantized, raw_dtype=writer.GGMLQuantizationType.Q4_0)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()

    data = path.read_bytes()
    header = parse(data)
    assert (header.name, header.context_length, header.quantization) == ("written", 512, "Q4_0")
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, Sequence)
    assert tokens[4999] == "token 4999"
    plain, packed = header.tensors
    assert (plain.shape, packed.shape) == ((64, 6), (64, 6))
    assert data[plain.offset : plain.offset + plain.size] == weights.tobytes()
    assert data[packed.offset : packed.offset + packed.size] == quantized.tobytes()


def test_block_sizes_agree_with_the_engine():
    libraries = Path(pytest.importorskip("llama_cpp").__file__).parent / "lib"
    ggml = ctypes.CDLL(str(libraries / "libggml-base.so.0"))
    ggml.ggml_blck_size.restype = ctypes.c_int64
    ggml.ggml_type_size.restype = ctypes.c_size_t
    for kind, (name, *sizes) in TENSOR_TYPES.items():
        assert [ggml.ggml_blck_size(kind), ggml.ggml_type_size(kind)] == sizes, name


def test_names_agree_with_the_gguf_package():
    theirs = {int(kind): kind.name for kind in writer.GGMLQuantizationType}
    assert {kind: TENSOR_TYPES[kind][0] for kind in theirs} == theirs
    labels = {int(kind): kind.name.removeprefix("MOSTLY_") for kind in writer.LlamaFileType}
    assert labels | {0: "F32"} == FILE_TYPES


HUGE = 1 << 62
HOSTILE = {
    "empty": (b"", "ends in the middle"),
    "magic": (gguf_bytes(magic=b"GGML"), "does not start with GGUF"),
    "version 1": (gguf_bytes(version=1), "version is 1"),
    "version 4": (gguf_bytes(version=4), "version is 4"),
    "big-endian": (gguf_bytes(version=3 << 24), "big-endian"),
    "no tensors": (gguf_bytes(tensors=()), "tensor count is 0"),
    "absurd tensor count": (gguf_bytes(tensor_count=HUGE), "tensor count"),
    "absurd pair count": (gguf_bytes(pair_count=HUGE), "metadata count"),
    "a tensor too many": (gguf_bytes(tensor_count=3), "GGUF file"),
    "a pair too many": (gguf_bytes(pair_count=len(PAIRS) + 1), "GGUF file"),
    "no architecture": (gguf_bytes(pairs=PAIRS[1:]), "architecture"),
    "architecture is a number": (gguf_bytes(pairs=(u32_pair("general.architecture", 1),)), "architecture"),
    "architecture is not printable": (
        gguf_bytes(pairs=(string_pair("general.architecture", "a\n"),)),
        "archi",
    ),
    "empty key": (gguf_bytes(pairs=(ARCHITECTURE, u32_pair("", 1))), "empty or appears twice"),
    "duplicate key": (gguf_bytes(pairs=(*PAIRS, PAIRS[1])), "empty or appears twice"),
    "long key": (gguf_bytes(pairs=(ARCHITECTURE, u32_pair("k" * 2000, 1))), "metadata key is 2000 bytes"),
    "absurd key length": (gguf_bytes(pairs=(struct.pack("<Q", HUGE),)), f"{HUGE} bytes"),
    "key is not text": (gguf_bytes(pairs=(ARCHITECTURE, text(b"\xff") + bytes(12))), "not UTF-8"),
    "value is not text": (gguf_bytes(pairs=(ARCHITECTURE, string_pair("k", b"\xc3"))), "not UTF-8"),
    "absurd string length": (
        gguf_bytes(pairs=(pair("k", STRING, struct.pack("<Q", HUGE)),)),
        "length of a text",
    ),
    "string beyond the end": (
        gguf_bytes(pairs=(pair("k", STRING, struct.pack("<Q", 1 << 20)),)),
        "ends in the",
    ),
    "unknown value type": (gguf_bytes(pairs=(ARCHITECTURE, pair("k", 13, b""))), "unknown type 13"),
    "unknown element type": (
        gguf_bytes(pairs=(ARCHITECTURE, array_pair("k", 13, 1, b""))),
        "elements of type 13",
    ),
    "nested array": (gguf_bytes(pairs=(ARCHITECTURE, array_pair("k", ARRAY, 1, bytes(12)))), "nested"),
    "absurd array": (gguf_bytes(pairs=(ARCHITECTURE, array_pair("k", F32, HUGE, b""))), "elements"),
    "array beyond the end": (
        gguf_bytes(pairs=(ARCHITECTURE, array_pair("k", U64, 1 << 20, b""))),
        "ends in the",
    ),
    "strings beyond the end": (
        gguf_bytes(pairs=(ARCHITECTURE, array_pair("k", STRING, 1 << 20, b""))),
        "GGUF",
    ),
    "many arrays": (
        gguf_bytes(
            pairs=(ARCHITECTURE, *(array_pair(f"k{i}", BOOL, 1 << 20, bytes(1 << 20)) for i in range(5)))
        ),
        "elements",
    ),
    "bool is 2": (gguf_bytes(pairs=(ARCHITECTURE, pair("k", BOOL, b"\2"))), "neither 0 nor 1"),
    "bools hold 2": (
        gguf_bytes(pairs=(ARCHITECTURE, array_pair("k", BOOL, 3, b"\0\1\2"))),
        "neither 0 nor 1",
    ),
    "alignment 48": (gguf_bytes(pairs=(ARCHITECTURE, u32_pair("general.alignment", 48))), "power of two"),
    "alignment 0": (
        gguf_bytes(pairs=(ARCHITECTURE, u32_pair("general.alignment", 0))),
        "general.alignment is 0",
    ),
    "absurd alignment": (gguf_bytes(pairs=(ARCHITECTURE, u32_pair("general.alignment", 1 << 31))), "not in"),
    "alignment is text": (gguf_bytes(pairs=(ARCHITECTURE, string_pair("general.alignment", "32"))), "32-bit"),
    "absurd context": (
        gguf_bytes(pairs=(ARCHITECTURE, pair("llama.context_length", U64, struct.pack("<Q", HUGE)))),
        "context length",
    ),
    "same token twice": (
        gguf_bytes(
            pairs=(ARCHITECTURE, array_pair("tokenizer.ggml.tokens", STRING, 2, text("a\0b") + text("a\0c")))
        ),
        "same token twice",
    ),
    "split model": (gguf_bytes(pairs=(ARCHITECTURE, pair("split.count", 2, b"\2\0"))), "2 parts"),
    "nameless tensor": (gguf_bytes(tensors=(tensor("", (1,), 0, 0),), data=bytes(4)), "no name"),
    "long tensor name": (gguf_bytes(tensors=(tensor("n" * 64, (1,), 0, 0),), data=bytes(4)), "64 bytes"),
    "same tensor twice": (
        gguf_bytes(tensors=(tensor("a", (1,), 0, 0), tensor("a", (1,), 0, 32)), data=bytes(64)),
        "appears twice",
    ),
    "no dimensions": (gguf_bytes(tensors=(tensor("a", (), 0, 0),), data=bytes(4)), "dimension count is 0"),
    "five dimensions": (gguf_bytes(tensors=(tensor("a", (1,) * 5, 0, 0),), data=bytes(4)), "count is 5"),
    "zero dimension": (gguf_bytes(tensors=(tensor("a", (4, 0), 0, 0),), data=bytes(4)), "impossible shape"),
    "overflowing shape": (
        gguf_bytes(tensors=(tensor("a", (1 << 32, 1 << 32, 4), 0, 0),), data=bytes(4)),
        "impossible shape",
    ),
    "unknown tensor type": (
        gguf_bytes(tensors=(tensor("a", (1,), 31, 0),), data=bytes(4)),
        "unknown type 31",
    ),
    "partial block": (gguf_bytes(tensors=(tensor("a", (33,), 2, 0),), data=bytes(64)), "block of 32"),
    "overlap": (
        gguf_bytes(tensors=(tensor("a", (16,), 0, 0), tensor("b", (16,), 0, 32)), data=bytes(128)),
        "not where",
    ),
    "gap": (
        gguf_bytes(tensors=(tensor("a", (8,), 0, 0), tensor("b", (8,), 0, 64)), data=bytes(128)),
        "not where",
    ),
    "misaligned": (
        gguf_bytes(tensors=(tensor("a", (1,), 0, 0), tensor("b", (1,), 0, 4)), data=bytes(64)),
        "not where",
    ),
    "offset wraps": (
        gguf_bytes(tensors=(tensor("a", (8,), 0, (1 << 64) - 32),), data=bytes(32)),
        "not where",
    ),
    "tensor beyond the end": (
        gguf_bytes(tensors=(tensor("a", (9,), 0, 0),), data=bytes(32)),
        "4 bytes beyond",
    ),
    "tensor far beyond the end": (gguf_bytes(tensors=(tensor("a", (1 << 61,), 0, 0),)), "beyond the end"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_for_the_right_reason(case: str):
    data, reason = HOSTILE[case]
    with pytest.raises(CallerError, match=reason) as caught:
        parse(data)
    assert caught.value.hint
    assert len(caught.value.message) < 300


def test_every_truncation_is_refused():
    data = gguf_bytes()
    for length in range(len(data)):
        with pytest.raises(CallerError):
            parse(data[:length])


def test_a_header_larger_than_the_bound_is_refused_before_it_is_read():
    pairs = [ARCHITECTURE]
    pairs += [pair(f"k{i}", STRING, struct.pack("<Q", reader.MAX_STRING)) for i in range(1)]
    head = gguf_bytes(pairs=tuple(pairs))[: 24 + sum(map(len, pairs))]
    following = pair("x", STRING, struct.pack("<Q", reader.MAX_STRING))
    largest = 0

    def read(offset: int, length: int) -> bytes:
        """A file of many huge strings, made as it is read."""
        nonlocal largest
        largest = max(largest, length)
        data = bytearray(length)
        for start, piece in ((0, head), (len(head) + reader.MAX_STRING, following)):
            low, high = max(start, offset), min(start + len(piece), offset + length)
            if low < high:
                data[low - offset : high - offset] = piece[low - start : high - start]
        return bytes(data)

    head = head[:16] + struct.pack("<Q", 3) + head[24:]
    with pytest.raises(CallerError, match="larger than"):
        parse_gguf(read, 1 << 40)
    assert largest <= reader.MAX_STRING


def test_a_source_that_shrinks_while_it_is_read_is_refused():
    data = gguf_bytes()
    with pytest.raises(CallerError, match="shorter"):
        parse_gguf(lambda offset, length: data[offset : offset + length][:-1], len(data))


VALID = gguf_bytes()
INTERESTING = [0, 1, 0x7F, 0xFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1]


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    data = bytearray(VALID)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(["flip", "number", "cut", "splice", "repeat", "insert"])):
            case "flip":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "number":
                width = draw(st.sampled_from([4, 8]))
                value = draw(st.sampled_from(INTERESTING) | st.integers(0, (1 << 64) - 1))
                data[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
            case "cut":
                del data[at:]
            case "splice":
                start = draw(st.integers(0, len(VALID)))
                data[at : at + 16] = VALID[start : start + draw(st.integers(0, 64))]
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(0, 64))]
            case "insert":
                data[at:at] = draw(st.binary(max_size=32))
    return bytes(data)


@settings(max_examples=600, deadline=None)
@given(mutations() | st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: VALID[:24] + tail))
def test_any_bytes_parse_or_raise_caller_error(data: bytes):
    try:
        header = parse(data)
    except CallerError:
        return
    assert header.architecture
    assert header.quantization
    assert header.parameter_count > 0
    end = header.data_offset
    for tensor_info in header.tensors:
        assert tensor_info.offset >= end
        assert tensor_info.offset % header.alignment == 0
        end = tensor_info.offset + tensor_info.size
    assert end <= len(data)
