"""When sealed answers and refusals leave: by how many tokens wait and by the clock, and by nothing else.

Why so: docs/decisions/0028-sealed-answers-leave-by-tokens-and-time.md. It holds for both secure worlds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import msgspec

from flexserve.errors import PeerError
from flexserve.protocol.answers import Failed
from flexserve.protocol.failures import failure_of
from flexserve.protocol.sealed_answer import TOKENS_OF_A_FRAME
from flexserve.protocol.sealed_request import refusal

INTERVAL = 0.02  # seconds between two frames of a text, at least, unless TOKENS_OF_A_FRAME wait


class Pace:
    """When the next frame of one answer leaves. `clock`: seconds. Its owner's lock guards it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting, self._left = 0, float("-inf")  # tokens; when the last frame left

    def add(self, tokens: int) -> bool:
        """Take in that so many more wait; return whether a frame is due."""
        self._waiting += tokens
        return self._waiting >= TOKENS_OF_A_FRAME or self.is_due()

    def is_due(self) -> bool:
        """Return whether tokens wait, and the last frame left long enough ago."""
        return self._waiting > 0 and self._clock() - self._left >= INTERVAL

    def leave(self) -> None:
        """Take in that all that waits leaves now."""
        self._waiting, self._left = 0, self._clock()


class Paced(Protocol):
    """A sealed request that is answered."""

    def tick(self) -> None:
        """Have a frame leave, if one is due."""


P = TypeVar("P", bound=Paced)


class Ticks(Generic[P]):
    """Those who are answered, each with a tick of a clock every INTERVAL, and those who are refused with one.

    `send`: to the normal world. Thread-safe.
    """

    def __init__(self, send: Callable[[msgspec.Struct], None]) -> None:
        self._send = send
        self._lock = threading.Lock()  # guards the next two
        self._answered: dict[int, P] = {}
        self._refused: list[int] = []
        self._wanted = threading.Event()

    def start(self) -> None:
        """Tick from now on, whenever there is somebody to tick for."""
        threading.Thread(target=self._run, name="sealed-frames", daemon=True).start()

    def expect(self) -> None:
        """Have the next tick come soon: a request came, and will be answered or refused."""
        self._wanted.set()

    def begin(self, number: int, request: P) -> None:
        """Add one who is answered under this number. Raises PeerError when another is."""
        with self._lock:
            if self._answered.setdefault(number, request) is not request:
                raise PeerError("Two requests have one number.", hint="Restart flexserve.")
        self._wanted.set()

    def find(self, number: int) -> P | None:
        """Return who is answered under this number."""
        with self._lock:
            return self._answered.get(number)

    def end(self, number: int) -> P | None:
        """Remove who was answered under this number, and return it."""
        with self._lock:
            return self._answered.pop(number, None)

    def refuse(self, number: int) -> None:
        """Refuse a request with the next tick, so that the time does not tell how far it was opened."""
        with self._lock:
            self._refused.append(number)
        self._wanted.set()

    def tick(self) -> None:
        """Have tokens leave that waited long enough, and refusals."""
        with self._lock:
            answered = list(self._answered.values())
            refused, self._refused = self._refused, []
            if not answered:
                self._wanted.clear()
        for number in refused:
            self._send(Failed(number, failure_of(refusal())))
        for request in answered:
            request.tick()

    def _run(self) -> None:
        while self._wanted.wait():
            time.sleep(INTERVAL)
            self.tick()
