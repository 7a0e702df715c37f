"""How fast an answer comes, in llama-server's names: while it comes to a client that asks, and at its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from flexserve.protocol.answers import Delta, Finished, Started

Json = dict[str, Any]


class Pace:
    """The pace of one answer, by when its messages are here. Mutated by `began` and `took`.

    `progress`: the client wants to know how much of its prompt is computed; `per_token`: and with each piece
    of text how long it took. Both are of streams only.
    """

    def __init__(
        self, *, progress: bool, per_token: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._progress, self._per_token, self._clock = progress, per_token, clock
        self._total = self._cached = self._count = 0
        self._began = self._first = self._last = clock()

    def began(self, started: Started) -> None:
        """Record that the prompt is being computed from now on."""
        self._total, self._cached, self._began = started.prompt_tokens, started.cached_tokens, self._clock()

    def took(self, delta: Delta) -> None:
        """Record more tokens of the answer."""
        if not delta.tokens:
            return
        self._last = self._clock()
        if not self._count:
            self._first = self._last
        self._count += delta.tokens

    def prompt_progress(self, processed: int) -> Json:
        """Return what a stream's chunk says when the KV cache has `processed` tokens of the prompt.

        Empty: nobody asked.
        """
        if not self._progress:
            return {}
        computed = processed - self._cached
        milliseconds = (self._clock() - self._began) * 1000 if computed else 0.0
        told = {
            "total": self._total,
            "cache": self._cached,
            "processed": processed,
            "time_ms": int(milliseconds),
        }
        timings = {"timings": _timings(computed, self._cached, 0, milliseconds, 0.0)}
        return {"prompt_progress": told} | (timings if self._per_token else {})

    def timings(self) -> Json:
        """Return what a stream's chunk says of the time so far. Empty: nobody asked, or no token came."""
        if not (self._per_token and self._count):
            return {}
        prefill, decode = self._first - self._began, self._last - self._first
        return {
            "timings": _timings(
                self._total - self._cached, self._cached, self._count, prefill * 1000, decode * 1000
            )
        }


def timings_of(finished: Finished) -> Json:
    """Return how long an answer took, in llama-server's names, as the secure world measured it."""
    usage, timings = finished.usage, finished.timings
    computed = usage.prompt_tokens - usage.cached_tokens
    return _timings(computed, usage.cached_tokens, usage.completion_tokens, timings.prefill, timings.decode)


def _timings(computed: int, cached: int, predicted: int, prefill: float, decode: float) -> Json:
    """Return counts of tokens and milliseconds as llama-server writes them.

    The first token comes of the prompt's last graph, so it is no step of the answer's pace.
    """
    return {
        "cache_n": cached,
        "prompt_n": computed,
        **_pace("prompt", computed, prefill),
        "predicted_n": predicted,
        **_pace("predicted", max(0, predicted - 1), decode),
    }


def _pace(of: str, steps: int, milliseconds: float) -> Json:
    return {
        f"{of}_ms": milliseconds,
        f"{of}_per_token_ms": milliseconds / steps if steps else 0.0,
        f"{of}_per_second": 1000 * steps / milliseconds if milliseconds else 0.0,
    }
