"""A request as policy sees it, and where those are that have not ended."""

from __future__ import annotations

import dataclasses

from flexserve.errors import FlexServeError
from flexserve.protocol.trusted_app import Ticket


@dataclasses.dataclass(slots=True, eq=False)
class Request:
    """One request from its admission to its end. Its fields are the engine thread's, but for two."""

    ticket: Ticket
    cancelled: bool = False  # set by any thread, and never taken back
    pending: int = 0  # tokens to compute before its next one; 0: it is no generation that began
    sequence: int = 0  # of its KV, once it began …
    apart: bool = False  # … and whether its prompt has to have graphs of its own
    error: FlexServeError | None = (
        None  # of its preparation, whose thread sets it before it queues the request again
    )

    @property
    def number(self) -> int:
        """The number that both worlds know it by."""
        return self.ticket.request

    @property
    def model(self) -> str:
        """The model that it asks."""
        return self.ticket.model


class Requests:
    """All requests that have not ended: a queue, the oldest first, and those that run. Not thread-safe."""

    def __init__(self) -> None:
        self._waiting: list[Request] = []
        self._running: list[Request] = []

    def add(self, request: Request) -> None:
        """Put a request at its place in the queue, by when it came."""
        later = (
            at for at, other in enumerate(self._waiting) if other.ticket.received > request.ticket.received
        )
        self._waiting.insert(next(later, len(self._waiting)), request)

    def take(self, model: str) -> Request | None:
        """Have the next request for `model` run: of the highest priority, the oldest."""
        waiting = self.waiting(model)
        if not waiting:
            return None
        request = max(waiting, key=lambda it: it.ticket.priority)  # the first of them, so the oldest
        self._waiting.remove(request)
        self._running.append(request)
        return request

    def put_back(self, request: Request) -> None:
        """Have a request that runs wait again."""
        self._running.remove(request)
        self.add(request)

    def remove(self, request: Request) -> None:
        """Forget a request that ran."""
        self._running.remove(request)

    def waiting(self, model: str | None = None) -> list[Request]:
        """Return those that wait (None: for any model), the oldest first."""
        return [request for request in self._waiting if model in (None, request.model)]

    def running(self) -> list[Request]:
        """Return those that run."""
        return list(self._running)

    def drop_waiting(self, number: int | None = None) -> list[Request]:
        """Take those out of the queue that have `number` (None: all) and return them."""
        dropped = [request for request in self._waiting if number in (None, request.number)]
        self._waiting = [request for request in self._waiting if request not in dropped]
        return dropped
