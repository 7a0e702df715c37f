"""A wire to an application that is played in Python."""

from __future__ import annotations

import queue
from collections.abc import Callable

from flexserve.errors import PeerError
from flexserve.tee_client.messages import HEADER, Status


def answer(tag: int, status: int = Status.DONE, payload: bytes = b"", *values: int) -> bytes:
    """Return an answer as it is sent."""
    return HEADER.pack(status, len(payload), tag, *values, *[0] * (5 - len(values))) + payload


class PlayedWire:
    """A wire behind which `hear` answers: it gets kind, tag, arguments and payload of each request.

    What it returns is read then; `say` has more be read. None: nothing more is ever read.
    """

    def __init__(self, hear: Callable[[int, int, tuple[int, ...], bytes], bytes | None]) -> None:
        self._hear = hear
        self._said: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._rest = b""

    def say(self, data: bytes | None) -> None:
        """Have this be read next."""
        self._said.put(data)

    def write(self, data: bytes) -> None:
        """Hear a request."""
        kind, _, tag, *arguments = HEADER.unpack_from(data)
        self.say(self._hear(kind, tag, tuple(arguments), data[HEADER.size :]))

    def read(self, size: int) -> bytes:
        """Return what was said."""
        while len(self._rest) < size:
            more = self._said.get(timeout=10)
            if more is None:
                raise PeerError("It has ended.")
            self._rest += more
        data, self._rest = self._rest[:size], self._rest[size:]
        return data
