"""Frames on the world channel, without I/O: bytes in, messages out.

A frame is a 4-byte little-endian length and that many bytes of MessagePack. The reader accepts
nothing but frames that decode to the expected union: everything else, whatever the bytes, is a
PeerError, after which the decoder refuses further input (the stream has no meaning any more).
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from flexserve.errors import PeerError

# Bytes; the largest legal message is a prompt of MAX_TEXT characters, or the same sealed.
MAX_FRAME = (4 << 20) + (8 << 10)
_HEADER = 4

_encoder = msgspec.msgpack.Encoder()
M = TypeVar("M")


def encode(message: msgspec.Struct) -> bytes:
    """Return `message` as one frame. Raises PeerError when it is larger than MAX_FRAME."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME:
        raise PeerError(
            f"A message of {len(body)} bytes does not fit a frame.", hint="Send a shorter prompt."
        )
    return len(body).to_bytes(_HEADER, "little") + body


class FrameDecoder(Generic[M]):
    """Turns a byte stream into messages of one union type (`ToSecure` or `ToNormal`)."""

    def __init__(self, union: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(union)
        self._buffer = bytearray()
        self._broken = False

    def feed(self, data: bytes) -> list[M]:
        """Add `data` and return the messages completed by it, in order.

        Raises PeerError on the first malformed frame; messages before it in the same `data`
        are lost with the stream, which is unusable from then on.
        """
        if self._broken:
            raise PeerError("The world channel already failed.", hint="Restart the secure world.")
        self._buffer += data
        messages: list[M] = []
        while len(self._buffer) >= _HEADER:
            size = int.from_bytes(self._buffer[:_HEADER], "little")
            if size > MAX_FRAME:
                raise self._fail(f"a frame announces {size} bytes, the limit is {MAX_FRAME}")
            if len(self._buffer) < _HEADER + size:
                break
            body = bytes(self._buffer[_HEADER : _HEADER + size])
            del self._buffer[: _HEADER + size]
            try:
                messages.append(self._decoder.decode(body))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                # The text of a validation error names types and paths, never values.
                raise self._fail(type(error).__name__) from None
        return messages

    def end(self) -> None:
        """Tell the decoder that the stream ended. Raises PeerError inside a frame."""
        if self._buffer:
            raise self._fail("the channel closed in the middle of a frame")

    def _fail(self, what: str) -> PeerError:
        self._broken = True
        self._buffer.clear()
        return PeerError(f"The other world broke the protocol: {what}.", hint="Restart the secure world.")
