"""The secure end of the channel against a hostile normal world: PeerError, an end, or nothing at all."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexserve.errors import PeerError
from flexserve.protocol.framing import MAX_FRAME, FrameDecoder, encode
from flexserve.protocol.link import Link
from flexserve.protocol.memory import Grant, NeedMemory, Returned, Spare, WantSpare
from flexserve.protocol.messages import PROTOCOL_VERSION, Hello, Query, ToNormal
from flexserve.protocol.requests import Cancel


def hear(data: bytes, *, greeted: bool = True) -> list[msgspec.Struct]:
    """Return the messages that a Link yields of `data` and the end of the stream."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        link = Link(theirs)
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        if not greeted:
            link.expect_hello()
        return list(link.messages())


def frame(value: object) -> bytes:
    body = msgspec.msgpack.encode(value)
    return struct.pack("<I", len(body)) + body


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200) | st.dictionaries(st.text(max_size=5), st.integers(-9, 9)).map(frame))
def test_whatever_arrives_is_a_peer_error_or_the_end(data: bytes):
    for greeted in (True, False):
        try:
            assert all(isinstance(message, msgspec.Struct) for message in hear(data, greeted=greeted))
        except (PeerError, EOFError):
            continue


def test_a_frame_larger_than_the_limit_is_a_peer_error():
    with pytest.raises(PeerError):
        hear(struct.pack("<I", MAX_FRAME + 1))


@pytest.mark.parametrize("first", [Hello(PROTOCOL_VERSION + 1), Query(1), Grant(1, 1)])
def test_anything_but_our_handshake_is_refused(first: msgspec.Struct):
    with pytest.raises(PeerError):
        hear(encode(first), greeted=False)


def test_a_second_handshake_is_refused():
    with pytest.raises(PeerError):
        hear(encode(Query(1)) + encode(Hello(PROTOCOL_VERSION)))


def answering(
    answers: Callable[[Any], list[Any]], ask: Callable[[Link], int] = lambda link: link.request(100, 10)
) -> tuple[int, list[msgspec.Struct]]:
    """Ask 100 bytes of a normal world that answers so; return what the link got and said."""
    ours, theirs = socket.socketpair()
    said: list[msgspec.Struct] = []
    with ours, theirs:
        link = Link(theirs)
        reader = threading.Thread(target=lambda: list(link.messages()))
        reader.start()

        def answer() -> None:
            decoder: FrameDecoder[ToNormal] = FrameDecoder(ToNormal)
            while data := ours.recv(65536):
                for message in decoder.feed(data):
                    said.append(message)
                    if isinstance(message, NeedMemory | WantSpare):
                        ours.sendall(b"".join(map(encode, answers(message))))
                        ours.shutdown(socket.SHUT_WR)

        peer = threading.Thread(target=answer)
        peer.start()
        granted = ask(link)
        reader.join()
        theirs.shutdown(socket.SHUT_RDWR)
        peer.join()
    return granted, said


def test_a_grant_of_more_than_was_asked_counts_as_what_was_asked():
    granted, _ = answering(lambda need: [Grant(need.serial, 1 << 40)])
    assert granted == 100


def test_a_grant_that_nobody_asked_for_goes_straight_back():
    granted, said = answering(lambda need: [Grant(need.serial + 7, 50), Grant(need.serial, 30)])
    assert granted == 30
    assert Returned(50) in said


def test_a_normal_world_that_leaves_refuses_what_was_asked():
    granted, _ = answering(lambda _need: [])
    assert granted == 0


def test_what_is_spare_is_no_more_than_was_asked_for_and_nothing_goes_back():
    spare, said = answering(
        lambda want: [Spare(want.serial, 1 << 40)], ask=lambda link: link.spare(100, "tiny: it is pinned")
    )
    assert spare == 100
    assert said == [WantSpare(1, 100, "tiny: it is pinned")]


def test_other_messages_pass_in_order():
    assert hear(encode(Query(1)) + encode(Cancel(2)) + encode(Query(3))) == [Query(1), Cancel(2), Query(3)]
