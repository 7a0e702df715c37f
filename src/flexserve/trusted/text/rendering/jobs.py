"""What the secure process asks its helper for, and what the helper answers."""

from __future__ import annotations

import enum
from typing import Any, Generic, TypeVar

import msgspec

from flexserve.protocol.notation import Notation

MAX_FRAME = 48 << 20  # bytes; a template, a conversation of the largest size, or four bytes a character
_HEADER = 4

T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()


class Outcome(enum.Enum):
    """How a job ended."""

    DONE = "done"
    REFUSED = "refused"  # by the template, through raise_exception()
    WRONG = "wrong"  # the template, or the grammar; `text` says why
    LIMITS = "limits"  # it took too much time or memory
    BUSY = "busy"  # too many jobs at once


class Ready(msgspec.Struct):
    """The first that a helper says. `not_alone`: why it has no namespace of processes ("": it has)."""

    not_alone: str


class Job(msgspec.Struct):
    """Render `source` with `values`; without values, look what it takes. Or compile `grammar`, or translate
    `gbnf` into one.
    """

    serial: int
    source: str = ""
    values: dict[str, Any] | None = None
    grammar: str | None = None
    gbnf: str | None = None


class Result(msgspec.Struct):
    """The end of a job: the rendered text, the translated grammar, what is said of one, or a refusal."""

    outcome: Outcome
    text: str = ""
    takes_tools: bool = False  # offered ones
    takes_calls: bool = False  # and their results, in the conversation
    shows_calls: bool = False  # those that were made
    takes_system: bool = True  # a system's message
    notation: Notation | None = None  # None: nobody looked


class Answer(msgspec.Struct):
    """The result of job `serial`."""

    serial: int
    result: Result


def encode(message: msgspec.Struct) -> bytes:
    """Return `message` with its length before it."""
    body = _encoder.encode(message)
    return len(body).to_bytes(_HEADER, "little") + body


class Frames(Generic[T]):
    """Turns a stream into messages of one kind. Raises ValueError for what is none."""

    def __init__(self, kind: type[T]) -> None:
        self._decoder = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[T]:
        """Add `data`; return the messages that it completes."""
        self._buffer += data
        messages: list[T] = []
        while len(self._buffer) >= _HEADER:
            end = _HEADER + int.from_bytes(self._buffer[:_HEADER], "little")
            if end > MAX_FRAME:
                raise ValueError("a message is too long")
            if len(self._buffer) < end:
                break
            messages.append(self._decoder.decode(memoryview(self._buffer)[_HEADER:end].tobytes()))
            del self._buffer[:end]
        return messages
