"""Which requests came already: none is answered twice."""

from __future__ import annotations

import collections

from flexserve.protocol.sealed_request import Content, refusal

WINDOW = 300_000  # milliseconds that a request's time may differ from ours
MOST = 1 << 18  # requests that are remembered


class SeenRequests:
    """The numbers of the requests of the last minutes. Not thread-safe."""

    def __init__(self) -> None:
        self._ids: collections.OrderedDict[bytes, int] = collections.OrderedDict()  # and until when

    def admit(self, content: Content, now: int) -> None:
        """Record a request. Raises CallerError (`refusal`) for one that is old, early or here already."""
        while self._ids and next(iter(self._ids.values())) < now:
            self._ids.popitem(last=False)
        if abs(content.time - now) > WINDOW or content.id in self._ids or len(self._ids) >= MOST:
            raise refusal()
        self._ids[content.id] = (
            now + 2 * WINDOW
        )  # its time is at most one window ahead, and lasts for another
