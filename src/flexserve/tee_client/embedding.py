"""One request for vectors of texts, or for their ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from flexserve.errors import CallerError, CancelledError, InternalError
from flexserve.protocol.answers import Embedded, Finished, Started, Timings, Usage
from flexserve.protocol.requests import Embed
from flexserve.tee_client import steps
from flexserve.tee_client.generation import Send
from flexserve.tee_client.messages import Ask, broken, packed
from flexserve.tee_client.open_model import OpenModel
from flexserve.tee_client.services import Services
from flexserve.trusted.text.prompt import numbered

_TOGETHER = 64  # vectors of a message: far below what a frame holds, for any model
_MAX_TOKENS = 1 << 20  # of all texts of a request
_PART = 128  # tokens that one graph takes in of a model that does not read texts whole
_MOST_WIDTH = 1 << 16


class Embedding:
    """Runs one request on an open model and sends its messages. `stopped`: whether it is to end early."""

    def __init__(
        self,
        services: Services,
        entry: OpenModel,
        request: Embed,
        *,
        received: float,
        send: Send,
        stopped: Callable[[], bool],
    ) -> None:
        """`received`: when it came in (monotonic seconds).

        Raises CallerError for more text than a request may bring.
        """
        self._services, self._entry, self._request = services, entry, request
        self._received, self._send, self._stopped = received, send, stopped
        self._texts = [self._tokens(text) for text in request.texts]
        self._count = sum(map(len, self._texts))
        if self._count > _MAX_TOKENS:
            raise CallerError(f"The texts have {self._count} tokens together.", hint="Send fewer at once.")
        self._sent = 0  # vectors
        self._began = 0.0
        self._loaded, self._waited = entry.weights.loaded, entry.weights.waited
        self._loading = entry.weights.seconds

    def _tokens(self, text: str | list[int | str]) -> list[int]:
        vocabulary, query = self._entry.vocabulary, self._request.query
        if not isinstance(text, str):
            return numbered(text, vocabulary)
        return (
            vocabulary.encode(text, special=False) if query is None else vocabulary.encode_pair(query, text)
        )

    def run(self) -> Finished:
        """Send Started and Embedded…; return the end, to be sent once the model is free again.

        Raises CallerError for texts that do not fit, CancelledError when it was stopped, and what computing
        raises. After GrantRefusedError it goes on behind what it has sent.
        """
        if not self._began:
            self._began = time.monotonic()
            self._send(Started(self._request.request, self._count))
        while self._sent < len(self._texts):
            vectors = []
            for tokens in self._texts[self._sent : self._sent + _TOGETHER]:
                if self._stopped():
                    raise CancelledError("The request was cancelled.")
                with self._entry.more_heap():
                    vectors.append(self._vector(tokens))
            self._send(Embedded(self._request.request, vectors))
            self._sent += len(vectors)
        ended, waited = time.monotonic(), self._entry.weights.waited - self._waited
        timings = Timings(
            queue=1000 * max(0.0, self._began - self._received),
            restore=1000 * waited,
            load=1000 * (self._entry.weights.seconds - self._loading),
            prefill=1000 * max(0.0, ended - self._began - waited),
            ttft=1000 * max(0.0, ended - self._received),
            restored_bytes=self._entry.weights.loaded - self._loaded,
        )
        return Finished(self._request.request, "stop", Usage(self._count, 0), timings)

    def _vector(self, tokens: Sequence[int]) -> bytes:
        """Return the vector of a text, of length 1, or its rank, as bytes of a message."""
        entry, size = self._entry, self._entry.largest_text
        if not 0 < len(tokens) <= size:
            raise CallerError(
                f"A text of {len(tokens)} tokens is too large: this model takes {size} here."
                if tokens
                else "A text has no tokens.",
                hint="Split long texts, leave empty ones out, or give the model a longer context.",
                code="context_length_exceeded",
            )
        ranks = self._request.query is not None
        asked = (entry.number, int(ranks), self._services.app.batch if entry.reads_whole else _PART)
        reply = steps.computed(self._services, entry, Ask.EMBED, *asked, payload=packed(tokens))
        if not 0 < len(reply.payload) <= 4 * _MOST_WIDTH or len(reply.payload) % 4:
            raise broken("a vector is none")
        vector = np.frombuffer(reply.payload, "<f4").astype(np.float64)
        if ranks:
            return _rank(vector)
        length = float(np.linalg.norm(vector))
        if not (np.isfinite(length) and length > 0):
            raise InternalError("The model made a vector that has no direction.")
        return (vector / length).astype("<f4").tobytes()


def _rank(vector: NDArray[np.float64]) -> bytes:
    if len(vector) != 1:
        raise broken("a rank is none")
    if not np.isfinite(vector[0]):
        raise InternalError("The model's rank of a text is no number.")
    return vector.astype("<f4").tobytes()
