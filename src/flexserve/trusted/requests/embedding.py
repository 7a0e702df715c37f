"""One request for embeddings, from texts to vectors."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from flexserve.errors import CallerError
from flexserve.protocol.messages import Embed, Embedded, Finished, Started, Usage
from flexserve.serving.model_manager import OpenModel
from flexserve.trusted.engine.embedder import Embedder

_TOGETHER = 64  # vectors of a message: far below what a frame holds, for any model
_MAX_TOKENS = 1 << 20  # of all texts of a request


class Mended(Protocol):
    """What `Shelf.mended` is."""

    def __call__(self, entry: OpenModel, work: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return what `work` returns."""


class Embedding:
    """Runs one request on a leased model and sends its messages.

    `received` is when the request came in (monotonic seconds). `mended` does something with the weights,
    if need be twice (Shelf.mended).
    """

    def __init__(
        self,
        entry: OpenModel,
        request: Embed,
        received: float,
        send: Callable[[msgspec.Struct], None],
        mended: Mended,
    ) -> None:
        self._entry, self._request, self._received, self._send = entry, request, received, send
        self._mended = mended

    def run(self, check: Callable[[], None]) -> Finished:
        """Send Started and Embedded…; return the end, to be sent once the lease is over.

        `check` is called before each text and raises when the request was cancelled. Raises
        CallerError for texts that do not fit, and what restoring raises.
        """
        began = time.monotonic()
        texts = [self._entry.vocabulary.encode(text, special=False) for text in self._request.texts]
        count = sum(map(len, texts))
        if count > _MAX_TOKENS:
            raise CallerError(f"The texts have {count} tokens together.", hint="Send fewer at once.")
        embedder = Embedder(self._entry.context)
        try:
            self._send(Started(self._request.request, count))
            for at in range(0, len(texts), _TOGETHER):
                vectors = []
                for tokens in texts[at : at + _TOGETHER]:
                    check()
                    vector = self._mended(self._entry, functools.partial(embedder.embed, tokens))
                    vectors.append(vector.astype("<f4").tobytes())
                self._send(Embedded(self._request.request, vectors))
        finally:
            embedder.close()
        ended = time.monotonic()
        timings = embedder.stats.timings(
            queue=began - self._received,
            prefill=ended - began - embedder.stats.waited,
            ttft=ended - self._received,
        )
        return Finished(self._request.request, "stop", Usage(count, 0), timings)
