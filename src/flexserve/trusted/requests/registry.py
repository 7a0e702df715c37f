"""The requests of a trusted application, by their numbers."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

from flexserve.errors import PeerError

_Request = TypeVar("_Request")


class Registry(Generic[_Request]):
    """Requests from their admission to their end. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[int, _Request] = {}

    def admit(self, number: int, request: _Request) -> None:
        """Take a request in. Raises PeerError for a number that another one has.

        It would be answered in that one's place.
        """
        with self._lock:
            if number in self._requests:
                raise PeerError("Two requests have one number.", hint="Restart flexserve.")
            self._requests[number] = request

    def __getitem__(self, number: int) -> _Request:
        """Return a request that has not ended. Raises KeyError where there is none."""
        return self._requests[number]

    def get(self, number: int) -> _Request | None:
        """Return a request; None: there is none, or it has ended."""
        with self._lock:
            return self._requests.get(number)

    def end(self, number: int) -> _Request | None:
        """Forget a request; return it, if there is one."""
        with self._lock:
            return self._requests.pop(number, None)
