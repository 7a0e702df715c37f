"""One request for embeddings, from texts to vectors; or for ranks, from texts to numbers."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import msgspec

from flexserve.errors import CallerError, CancelledError
from flexserve.protocol.answers import Embedded, Finished, Started, Usage
from flexserve.protocol.requests import Embed
from flexserve.trusted.engine.embedder import Embedder
from flexserve.trusted.open_model import OpenModel
from flexserve.trusted.text.prompt import numbered
from flexserve.trusted.weights.job import RestoreStats

_TOGETHER = 64  # vectors of a message: far below what a frame holds, for any model
_MAX_TOKENS = 1 << 20  # of all texts of a request


class Embedding:
    """Runs one request on an open model and sends its messages.

    `received`: when the request came in (monotonic seconds); `stopped`: whether it is to end early.
    """

    def __init__(
        self,
        entry: OpenModel,
        request: Embed,
        received: float,
        send: Callable[[msgspec.Struct], None],
        *,
        stopped: Callable[[], bool],
    ) -> None:
        """Raises CallerError for more text than a request may bring."""
        self._entry, self._request, self._received, self._send = entry, request, received, send
        self._texts = [self._tokens(text) for text in request.texts]
        self._count = sum(map(len, self._texts))
        if self._count > _MAX_TOKENS:
            raise CallerError(f"The texts have {self._count} tokens together.", hint="Send fewer at once.")
        self._sent = 0  # vectors
        self._began = 0.0
        self._stats = RestoreStats()
        self._stopped = stopped

    def _tokens(self, text: str | list[int | str]) -> list[int]:
        vocabulary = self._entry.vocabulary
        if not isinstance(text, str):
            return numbered(text, vocabulary)
        if self._request.query is not None:
            return vocabulary.encode_pair(self._request.query, text)
        return vocabulary.encode(text, special=False)

    def run(self) -> Finished:
        """Send Started and Embedded…; return the end, to be sent once the model is free again.

        Raises CallerError for texts that do not fit, CancelledError when it was stopped, and what
        restoring raises. After GrantRefusedError it goes on behind what it has sent.
        """
        embedder = Embedder(self._entry.context, ranks=self._request.query is not None)
        try:
            if not self._began:
                self._began = time.monotonic()
                self._send(Started(self._request.request, self._count))
            while self._sent < len(self._texts):
                vectors = []
                for tokens in self._texts[self._sent : self._sent + _TOGETHER]:
                    if self._stopped():
                        raise CancelledError("The request was cancelled.")
                    vector = self._entry.mended(functools.partial(embedder.embed, tokens))
                    vectors.append(vector.astype("<f4").tobytes())
                self._send(Embedded(self._request.request, vectors))
                self._sent += len(vectors)
        finally:
            self._stats.include(embedder.stats)
            embedder.close()
        ended = time.monotonic()
        timings = self._stats.timings(
            queue=self._began - self._received,
            prefill=ended - self._began - self._stats.waited,
            ttft=ended - self._received,
        )
        return Finished(self._request.request, "stop", Usage(self._count, 0), timings)
