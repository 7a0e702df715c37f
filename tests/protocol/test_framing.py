"""Frames: what goes in comes out, and whatever else arrives is a PeerError and nothing but."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexserve.errors import PeerError
from flexserve.protocol import bounds, messages
from flexserve.protocol.answers import Delta
from flexserve.protocol.framing import MAX_FRAME, FrameDecoder, encode
from flexserve.protocol.memory import NeedMemory, Recall, Returned
from flexserve.protocol.messages import Hello, ToNormal, ToSecure
from flexserve.protocol.prompts import ChatMessage, ChatPrompt, TextPrompt, ToolCall
from flexserve.protocol.requests import Cancel, Embed, Generate
from flexserve.protocol.sampling import Sampling

SERIALS = st.integers(0, 1 << 53)
TEXT = st.text(st.characters(codec="utf-8"), max_size=50)
SAMPLING = st.builds(
    Sampling,
    max_tokens=st.none() | st.integers(1, 1 << 20),
    temperature=st.floats(0, 5),
    top_p=st.floats(0, 1),
    seed=st.none() | st.integers(0, (1 << 63) - 1),
    stop=st.lists(TEXT.filter(bool), max_size=4),
    logprobs=st.none() | st.integers(0, bounds.MAX_TOP_LOGPROBS),
    schema=st.none() | TEXT,
)
PROMPTS = st.builds(TextPrompt, TEXT) | st.builds(
    ChatPrompt,
    st.lists(
        st.builds(
            ChatMessage,
            st.sampled_from(["user", "system"]),
            TEXT,
            st.lists(st.builds(ToolCall, TEXT, TEXT.filter(bool), TEXT), max_size=2),
            TEXT,
            TEXT,
        ),
        min_size=1,
        max_size=3,
    ),
    st.none() | TEXT,
    st.lists(TEXT.filter(bool), max_size=2),
)
TO_SECURE = st.one_of(
    st.builds(Hello, st.integers(0, 9)),
    st.builds(Generate, SERIALS, TEXT.filter(bool), PROMPTS, SAMPLING),
    st.builds(
        Embed,
        SERIALS,
        TEXT.filter(bool),
        st.lists(TEXT, min_size=1, max_size=4),
        keep_alive=st.none() | st.floats(-1, 1e9),
    ),
    st.builds(Cancel, SERIALS),
    st.builds(Recall, SERIALS, st.none() | SERIALS, st.floats(0, 1e12)),
)


def frame(value: Any) -> bytes:
    body = msgspec.msgpack.encode(value)
    return struct.pack("<I", len(body)) + body


def feed(data: bytes, union: Any = ToSecure) -> list[Any]:
    """Return what the decoder makes of `data` as a whole stream; any error but PeerError escapes."""
    decoder: FrameDecoder[Any] = FrameDecoder(union)
    found = decoder.feed(data)
    decoder.end()
    return found


@given(st.lists(TO_SECURE, max_size=5), st.integers(1, 64))
def test_messages_survive_framing_in_pieces_of_any_size(sent: list[Any], piece: int) -> None:
    stream = b"".join(encode(message) for message in sent)
    decoder: FrameDecoder[Any] = FrameDecoder(ToSecure)
    got = []
    for start in range(0, len(stream), piece):
        got += decoder.feed(stream[start : start + piece])
    decoder.end()
    assert got == sent


@settings(max_examples=500)
@given(st.binary(max_size=200), st.sampled_from([ToSecure, ToNormal]))
def test_any_bytes_parse_or_raise_peer_error(data: bytes, union: Any) -> None:
    try:
        feed(data, union)
    except PeerError:
        return


@settings(max_examples=500)
@given(st.binary(max_size=200), st.sampled_from([ToSecure, ToNormal]))
def test_any_body_in_a_sound_frame_parses_or_raises_peer_error(body: bytes, union: Any) -> None:
    try:
        feed(struct.pack("<I", len(body)) + body, union)
    except PeerError:
        return


@settings(max_examples=500)
@given(TO_SECURE, st.data())
def test_a_frame_with_one_wrong_byte_parses_or_raises_peer_error(message: Any, data: st.DataObject) -> None:
    damaged = bytearray(encode(message))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        feed(bytes(damaged))
    except PeerError:
        return


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=300)
@given(st.sampled_from([type(None), *ToSecure.__args__]), st.dictionaries(TEXT, JSON, max_size=3))
def test_a_known_tag_with_any_fields_parses_or_raises_peer_error(kind: type, fields: dict[str, Any]) -> None:
    try:
        feed(frame({"type": kind.__name__, **fields}))
    except PeerError:
        return


@pytest.mark.parametrize(
    "value",
    [
        {"type": "Nonsense"},
        {"type": "Hello", "version": 1, "more": 2},
        {"type": "Hello", "version": "1"},
        {"type": "Hello"},
        {"type": "Cancel", "request": -1},
        {"type": "Cancel", "request": 1 << 60},
        {"type": "Recall", "serial": 1, "demand": None, "deadline": float("nan")},
        [1, 2, 3],
        None,
    ],
)
def test_what_is_no_message_is_refused(value: Any) -> None:
    with pytest.raises(PeerError):
        feed(frame(value))


def test_the_other_directions_messages_are_refused() -> None:
    with pytest.raises(PeerError):
        feed(encode(NeedMemory(1, 2, 3)), ToSecure)
    with pytest.raises(PeerError):
        feed(encode(Cancel(1)), ToNormal)


def test_a_frame_that_announces_too_much_is_refused_before_its_body_arrives() -> None:
    with pytest.raises(PeerError, match="announces"):
        FrameDecoder[Any](ToSecure).feed(struct.pack("<I", MAX_FRAME + 1))


def test_a_message_too_large_for_a_frame_is_not_sent() -> None:
    with pytest.raises(PeerError, match="does not fit"):
        encode(Delta(1, "x" * (MAX_FRAME + 1), 1))


def test_depth_is_no_weapon() -> None:
    with pytest.raises(PeerError):
        feed(struct.pack("<I", 100_000) + b"\x91" * 100_000)


def test_a_broken_stream_stays_broken() -> None:
    decoder: FrameDecoder[Any] = FrameDecoder(ToNormal)
    with pytest.raises(PeerError):
        decoder.feed(b"\x01\x00\x00\x00\xc1")
    with pytest.raises(PeerError, match="already failed"):
        decoder.feed(encode(Returned(1)))


def test_a_stream_that_ends_inside_a_frame_is_an_error() -> None:
    decoder: FrameDecoder[Any] = FrameDecoder(ToNormal)
    assert decoder.feed(encode(Returned(1))[:-1]) == []
    with pytest.raises(PeerError, match="middle"):
        decoder.end()


def test_errors_do_not_quote_what_was_sent() -> None:
    with pytest.raises(PeerError) as caught:
        feed(frame({"type": "Cancel", "request": "a secret prompt"}))
    assert "secret prompt" not in str(caught.value)


def without_prose(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {key: without_prose(value) for key, value in schema.items() if key != "description"}
    return [without_prose(value) for value in schema] if isinstance(schema, list) else schema


def test_whoever_changes_a_message_gives_the_protocol_another_version() -> None:
    schema = without_prose(msgspec.json.schema(ToSecure | ToNormal))
    digest = hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()[:16]
    assert digest == messages.SCHEMA_DIGESTS[messages.PROTOCOL_VERSION], (
        "The messages are not those of this PROTOCOL_VERSION any more: raise it, and add its digest."
    )
    assert list(messages.SCHEMA_DIGESTS)[-1] == messages.PROTOCOL_VERSION
