"""The last requests of a server: which model, how much, how long. Never what was asked or answered."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Callable

from flexserve.protocol.answers import Finished

MAX_REQUESTS = 64


@dataclasses.dataclass(slots=True)
class Request:
    """One request that the secure world started. Times of day in seconds since the epoch, others in ms.

    The split of the time to first token (`ttft`) is known when the request ends; `queue`, `restore` and
    `prefill` are as in `timings` of its answer.
    """

    number: int  # 1, 2, 3 …
    model: str
    at: float  # when it was received
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0  # generated so far
    reason: str = ""  # how it ended; "" while it runs
    ttft: float = 0.0  # 0: there is no token yet
    queue: float = 0.0
    restore: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    restored_bytes: int = 0
    revision: int = dataclasses.field(default=0, repr=False)  # of the log, when it changed last


class RequestLog:
    """The last MAX_REQUESTS requests that were started. One event loop. `wall` is for display only."""

    def __init__(self, *, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._requests: deque[Request] = deque(maxlen=MAX_REQUESTS)
        self._numbers, self._revisions = itertools.count(1), itertools.count(1)

    def start(self, model: str, prompt_tokens: int, *, waited: float) -> Request:
        """Add a request that was received `waited` seconds ago."""
        number = next(self._numbers)
        request = Request(number, model, self._wall() - waited, prompt_tokens=prompt_tokens)
        self._requests.append(request)
        self._changed(request)
        return request

    def token(self, request: Request, count: int, *, since: float) -> None:
        """Record `count` tokens more, `since` seconds after receipt."""
        request.tokens += count
        request.ttft = request.ttft or since * 1000
        self._changed(request)

    def finish(self, request: Request, message: Finished) -> None:
        """Record how a request ended, with the secure world's own account of its time."""
        usage, timings = message.usage, message.timings
        request.prompt_tokens, request.cached_tokens = usage.prompt_tokens, usage.cached_tokens
        request.tokens = usage.completion_tokens
        request.ttft, request.queue, request.restore = timings.ttft, timings.queue, timings.restore
        request.prefill, request.decode = timings.prefill, timings.decode
        request.restored_bytes = timings.restored_bytes

    def end(self, request: Request, reason: str) -> None:
        """Record that a request ended, and how."""
        request.reason = reason
        self._changed(request)

    def changed_since(self, revision: int) -> list[Request]:
        """Return the requests that changed after `revision`, oldest first; 0: all."""
        return [request for request in self._requests if request.revision > revision]

    def _changed(self, request: Request) -> None:
        request.revision = next(self._revisions)
