"""What a played application does with sealed requests. Nothing is encrypted: bodies are what `body` makes.

An answer is "begin", frames of an F and the text that they have, and an L with the rest, or what was said.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import msgspec

from flexserve.protocol.sealed_answer import SERVER_NONCE
from flexserve.protocol.sealed_request import MIN_PADDED, SEALED_SECRET, Header, header_of
from flexserve.tee_client.messages import Ask, Finish, Status

BEGIN = b"begin".ljust(SERVER_NONCE, b".")
Answer = tuple[Status, bytes, tuple[int, ...]]


@dataclasses.dataclass
class PlayedSession:
    """A request that was opened, and what says its answer."""

    prompt: list[int]
    owner: tuple[int, int]
    most: int
    generation: Any = None
    given: int = 0

    def text(self) -> bytes:
        if self.generation is None:
            return b""
        return bytes(self.generation.tell())


class PlayedSealed:
    """Its sessions. `foreign`: blocks that it does not believe; `known`: those of models that tokens name."""

    def __init__(self) -> None:
        self.sessions: dict[int, PlayedSession] = {}
        self.foreign: set[bytes] = set()
        self.known: set[bytes] = set()
        self._numbers = itertools.count(1)

    def answer(self, kind: Ask, arguments: Sequence[int], payload: bytes) -> Answer:
        match kind:
            case Ask.ATTEST:
                return Status.DONE, b"token of " + payload, ()
            case Ask.KNOW:
                if payload in self.foreign:
                    return Status.DAMAGED, b"", ()
                (self.known.discard if arguments[0] else self.known.add)(payload)
                return Status.DONE, b"", ()
            case Ask.UNSEAL:
                return self._unsealed(payload)
        session = self.sessions.get(arguments[0])
        if session is None:
            return Status.BAD, b"", ()
        if kind is Ask.FRAME:
            return Status.DONE, b"F" + session.text(), ()
        del self.sessions[arguments[0]]
        whole = session.generation is not None and session.generation.finished is not Finish.NO
        return Status.DONE, b"L" + (session.text() if whole else payload), ()

    def _unsealed(self, payload: bytes) -> Answer:
        encoded = header_of(payload).encoded()
        content = payload[len(encoded) + SEALED_SECRET :].rstrip(b"\0")[:-1]
        try:
            prompt, owner, most, told = msgspec.msgpack.decode(content)
        except msgspec.DecodeError:
            return Status.DAMAGED, b"", ()
        number = next(self._numbers)
        digest = hashlib.sha256(owner).digest()
        whose = (int.from_bytes(digest[:8]), int.from_bytes(digest[8:16]) | 1 << 63)
        self.sessions[number] = PlayedSession(list(prompt), whose, most)
        return Status.DONE, BEGIN + told, (number, len(prompt), most, *whose)

    def begun(self, number: int) -> tuple[list[int], tuple[int, int], int] | None:
        session = self.sessions.get(number)
        return None if session is None else (session.prompt, session.owner, session.most)

    def running(self, number: int, generation: Any) -> None:
        self.sessions[number].generation = generation


def body(prompt: str, *, model: str = "a", owner: str = "me", most: int = 100, told: Any = None) -> bytes:
    """Return a request; `told`: what the normal world reads."""
    said = b"" if told is None else msgspec.msgpack.encode(told)
    content = msgspec.msgpack.encode([prompt.encode(), owner.encode(), most, said])
    return (
        Header(bytes(32), model).encoded()
        + bytes(SEALED_SECRET)
        + (content + b".").ljust(MIN_PADDED + 16, b"\0")
    )
