"""Questions that the secure world still owes an answer, by their numbers."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from flexserve.errors import PeerError
from flexserve.protocol.evidence import Attested
from flexserve.protocol.memory import Recalled
from flexserve.protocol.messages import Status

MAX_QUESTIONS = 256  # unanswered: a secure world that owes more does not answer

Told = Status | Recalled | Attested
A = TypeVar("A", Status, Recalled, Attested)


class Questions:
    """What was asked on one channel. A number stays known until its answer comes, however late."""

    def __init__(self) -> None:
        self._asked: dict[int, tuple[type[Told], asyncio.Future[Any]]] = {}

    @property
    def full(self) -> bool:
        """Whether no more may be asked before answers come."""
        return len(self._asked) >= MAX_QUESTIONS

    def count(self, kind: type[Told]) -> int:
        """Return how many are to be answered by a message of `kind`."""
        return sum(asked is kind for asked, _ in self._asked.values())

    async def answer(self, serial: int, kind: type[A], timeout: float) -> A:
        """Return the answer to question `serial`, a message of `kind`.

        Raises PeerError when none comes within `timeout` seconds, and what `fail` is given.
        """
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._asked[serial] = (kind, future)
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            # The number stays known, so that a late answer is not taken for an invented one.
            raise PeerError(
                f"The secure world gave no {kind.__name__} within {timeout:.0f} s.",
                hint="Try again; restart the server if it stays so.",
            ) from None

    def take(self, message: Told) -> asyncio.Future[Any]:
        """Return the future that waits for `message`; nobody may be waiting for it any more.

        Raises PeerError for an answer without a question.
        """
        kind, future = self._asked.pop(message.serial, (None, None))
        if kind is not type(message) or future is None:
            raise PeerError(f"The secure world sent {type(message).__name__} that nobody asked for.")
        return future

    def fail(self, error: PeerError) -> None:
        """Have all who wait raise `error`."""
        for _, future in self._asked.values():
            if not future.done():
                future.set_exception(PeerError(error.message, hint=error.hint))
                future.exception()  # retrieved: nobody may be waiting any more
        self._asked.clear()
