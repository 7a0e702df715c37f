"""A sealed answer, opened by who asked: frames in, messages out (protocol.sealed_answer)."""

from __future__ import annotations

from typing import Any

from cryptography.exceptions import InvalidTag

from flexserve.errors import PeerError
from flexserve.protocol.framing import FrameDecoder
from flexserve.protocol.rendered import Pieces
from flexserve.protocol.sealed_answer import LAST, Answered, Frames


class FrameOpener(Frames):
    """The client's end: bytes from the wire in, messages out.

    Whatever the bytes, `feed` returns messages or raises PeerError, after which it refuses all input.
    """

    def __init__(self, secret: bytes, body_hash: bytes, server_nonce: bytes, size: int) -> None:
        super().__init__(secret, body_hash, server_nonce, size)
        self._decoder: FrameDecoder[Any] = FrameDecoder(Answered | Pieces)
        self._wire = bytearray()
        self.ended = False

    def feed(self, data: bytes) -> list[Any]:
        """Return the messages that `data` completes. Raises PeerError for what was changed on its way."""
        self._wire += data
        messages: list[Any] = []
        while len(self._wire) >= self._size:
            frame = bytes(self._wire[: self._size])
            del self._wire[: self._size]
            messages += self._decoder.feed(self._opened(frame))
        if self.ended and self._wire:
            raise forged("it goes on after its last frame")
        return messages

    def end(self) -> None:
        """Tell it that the connection ended. Raises PeerError unless the last frame has come."""
        if not self.ended or self._wire:
            raise PeerError(
                "The sealed answer was cut off: its last frame did not come.",
                hint="Ask again; whoever passes answers on, or the connection, broke it off.",
                code="answer_cut_off",
            )
        self._decoder.end()

    def _opened(self, frame: bytes) -> bytes:
        if self.ended:
            raise forged("it goes on after its last frame")
        mark = frame[:1]
        try:
            plain = self._aead.decrypt(self._nonce(), frame[1:], mark)
        except InvalidTag:
            self.ended = True
            raise forged("a frame is not the one that the secure world sent here") from None
        self.ended = mark == LAST
        length = int.from_bytes(plain[:2], "little")
        if length > len(plain) - 2:
            raise forged("a frame says that it holds more than it can")
        return plain[2 : 2 + length]


def forged(why: str) -> PeerError:
    """Return the error of an answer that somebody changed on its way."""
    return PeerError(
        f"The sealed answer was changed on its way: {why}.",
        hint="Do not use what came of it. Ask again; another relay or network may be honest.",
        code="answer_forged",
    )
