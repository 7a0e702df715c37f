"""A link to the trusted application: several threads ask, each gets its own answer."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from flexserve.errors import FlexServeError
from flexserve.tee_client.messages import (
    ABOUT_MEMORY,
    HEADER,
    MOST_PAYLOAD,
    NUMBERS,
    Reply,
    Status,
    broken,
    request,
)
from flexserve.tee_client.turns import Turns


class Wire(Protocol):
    """Where messages go as bytes. One thread writes, one reads."""

    def write(self, data: bytes) -> None:
        """Write all of `data`. Raises PeerError and MachineGoneError when nobody reads any more."""

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes. Raises PeerError and MachineGoneError when none come any more."""


class Link:
    """Asks the application over a wire. Thread-safe.

    Between two slices of a step the application answers what is about memory. So such requests are sent at
    once, and all others one at a time, in the order in which they were asked.
    """

    def __init__(self, wire: Wire, broken: Callable[[FlexServeError], None] = lambda _why: None) -> None:
        """`broken` is called, with the reason, when nothing is answered any more."""
        self._wire, self._broken = wire, broken
        self._turns = Turns()
        self._writing = threading.Lock()
        self._changed = threading.Condition()  # guards what follows
        self._tags = itertools.count(1)
        self._replies: dict[int, Reply | None] = {}  # by the tag of what was asked; None: not answered yet
        self._reading = False  # a thread reads, for all
        self._end: FlexServeError | None = None  # why nothing is answered any more

    def turn(self, within: float | None = None) -> AbstractContextManager[bool]:
        """Have only this thread ask what is not about memory inside the block.

        False: it was not this thread's turn `within` seconds (None: wait).
        """
        return self._turns.taken(within)

    def ask(self, kind: int, *arguments: int, payload: bytes = b"") -> Reply:
        """Ask, wait, and return what is answered; the payload has MOST_PAYLOAD bytes at most.

        Raises PeerError and MachineGoneError when the application has ended, or its answers cannot be. Then
        the link is of no use any more: the same is raised each time.
        """
        if len(payload) > MOST_PAYLOAD or len(arguments) > NUMBERS:
            raise ValueError("this is larger than any request")
        with contextlib.nullcontext() if kind in ABOUT_MEMORY else self._turns.taken():
            return self._answer_to(self._send(kind, arguments, payload))

    def _send(self, kind: int, arguments: tuple[int, ...], payload: bytes) -> int:
        with self._writing:
            with self._changed:
                if self._end is not None:
                    raise self._end
                tag = next(self._tags)
                self._replies[tag] = None
            try:
                self._wire.write(request(kind, tag, arguments, payload))
            except FlexServeError as error:
                self._break(error)
                raise
        return tag

    def _answer_to(self, tag: int) -> Reply:
        """Wait for an answer. The first one who waits reads, for all others, too."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._over(tag) or not self._reading)
                reply = self._replies[tag]
                if reply is not None:
                    del self._replies[tag]
                    return reply
                if self._end is not None:
                    raise self._end
                self._reading = True
            try:
                self._take(*self._receive())
            except FlexServeError as error:
                self._break(error)
            finally:
                with self._changed:
                    self._reading = False
                    self._changed.notify_all()

    def _over(self, tag: int) -> bool:
        return self._replies[tag] is not None or self._end is not None

    def _receive(self) -> tuple[int, Reply]:
        status, size, tag, *values = HEADER.unpack(self._wire.read(HEADER.size))
        if size > MOST_PAYLOAD:
            raise broken("an answer is longer than any")
        try:
            known = Status(status)
        except ValueError:
            raise broken("an answer has no status that there is") from None
        return tag, Reply(known, tuple(values), self._wire.read(size))

    def _take(self, tag: int, reply: Reply) -> None:
        with self._changed:
            if self._replies.get(tag, reply) is not None:
                raise broken("an answer is to nothing that was asked")
            self._replies[tag] = reply

    def _break(self, error: FlexServeError) -> None:
        with self._changed:
            self._end = self._end or error
            self._changed.notify_all()
        self._broken(error)
