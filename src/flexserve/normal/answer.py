"""One request's answer on its way from the secure world to a client that may be slow.

The order is a law: Started, then Prefilled… and Delta… or Embedded… or Converted, then Finished; or Failed at
any point. A sealed answer is SealedPart… to the last one, or Failed instead of the first.
What breaks it is a PeerError. The backlog is bounded: a client that stops reading loses its request, not the
server's memory.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Callable
from typing import Protocol, Self

from flexserve.errors import CallerError, CancelledError, FlexServeError, PeerError
from flexserve.protocol.answers import Converted, Delta, Embedded, Failed, Finished, Prefilled, Started
from flexserve.protocol.failures import revive
from flexserve.protocol.sealed_messages import SealedPart

MAX_BACKLOG = 4 << 20  # cost of what waits for one client, in bytes of its text and structure
_MESSAGE_COST = 256  # bytes of Python objects around a message, roughly

AnswerMessage = Started | Prefilled | Delta | Embedded | Converted | SealedPart | Finished


class _Phase(enum.Enum):
    QUEUED = "queued"
    RUNNING = "running"
    SEALED = "sealed"
    ENDED = "ended"


class Observer(Protocol):
    """Who follows a request as it goes, for statistics. Its methods must not raise."""

    def saw(self, message: AnswerMessage | Failed) -> None:
        """Record a message, when it came."""

    def lost(self) -> None:
        """Record that no more comes: the secure world is gone."""


class Answer:
    """An async iterator over Started, Prefilled…, Delta… (Embedded…, Converted) and Finished, or SealedPart…

    A failed request raises.

    Use it as an async context manager: leaving early cancels the request in the secure world.
    Fed by the channel's reader, read by one consumer, both on the same event loop.
    """

    def __init__(
        self, request: int, *, cancel: Callable[[int], None], observer: Observer | None = None
    ) -> None:
        self.request = request
        self._cancel = cancel
        self._observer = observer
        self._phase = _Phase.QUEUED
        self._backlog: deque[AnswerMessage] = deque()
        self._cost = 0
        self._error: FlexServeError | None = None
        self._abandoned = False
        self._news = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether the secure world has said its last word on this request."""
        return self._phase is _Phase.ENDED

    def push(self, message: AnswerMessage | Failed) -> None:
        """Take the next message from the secure world. Raises PeerError when it is out of order."""
        self._advance(message)
        if self._observer is not None:
            self._observer.saw(message)
        if self._abandoned:
            return
        if isinstance(message, Failed):
            self._error = revive(message.failure)
        else:
            self._backlog.append(message)
            self._cost += _cost(message)
            if self._cost > MAX_BACKLOG:
                self._overflow()
        self._news.set()

    def fail(self, error: FlexServeError) -> None:
        """End the answer from this side: the channel is gone."""
        if self._observer is not None and not self.ended:
            self._observer.lost()
        self._phase = _Phase.ENDED
        self._error = self._error or error
        self._news.set()

    def abandon(self) -> None:
        """Stop caring: drop what waits, and cancel the request unless it ended. Always safe."""
        if self._abandoned:
            return
        self._abandoned = True
        self._backlog.clear()
        if not self.ended:
            self._cancel(self.request)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AnswerMessage:
        while True:
            if self._backlog:
                message = self._backlog.popleft()
                self._cost -= _cost(message)
                return message
            if self._error is not None:
                raise self._error
            if self.ended or self._abandoned:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.abandon()

    def _advance(self, message: AnswerMessage | Failed) -> None:
        match message, self._phase:
            case SealedPart(last=last), _Phase.QUEUED | _Phase.SEALED:
                self._phase = _Phase.ENDED if last else _Phase.SEALED
            case Started(), _Phase.QUEUED:
                self._phase = _Phase.RUNNING
            case Prefilled() | Delta() | Embedded() | Converted(), _Phase.RUNNING:
                pass
            case Finished(), _Phase.RUNNING:
                self._phase = _Phase.ENDED
            case Failed(), _Phase.QUEUED | _Phase.RUNNING:
                self._phase = _Phase.ENDED
            case _:
                raise PeerError(
                    f"The secure world sent {type(message).__name__} for a {self._phase.value} request.",
                    hint="Restart the secure world.",
                )

    def _overflow(self) -> None:
        error = CallerError(
            "The client reads slower than the model writes, and the backlog is full.",
            code="client_too_slow",
            hint="Read the stream faster, or ask for fewer tokens.",
        )
        self.abandon()
        self._error = error


def cancelled() -> CancelledError:
    """Return the error of a request that the server's own shutdown ends."""
    return CancelledError("The server is shutting down.", hint="Send the request again once it is back.")


def _cost(message: AnswerMessage) -> int:
    if isinstance(message, Embedded):
        return _MESSAGE_COST + sum(map(len, message.vectors))
    if isinstance(message, Converted):
        pieces = sum(map(len, message.pieces))
        return _MESSAGE_COST + len(message.text) + pieces + 8 * len(message.tokens)
    if isinstance(message, SealedPart):
        return _MESSAGE_COST + len(message.data)
    if not isinstance(message, Delta):
        return _MESSAGE_COST
    entries = sum(1 + len(choice.top) for choice in message.choices)
    return len(message.text) + _MESSAGE_COST * (1 + entries)
