"""One generation, from prompt to last token."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray

from flexserve.core.stops import StopScanner
from flexserve.errors import CallerError
from flexserve.secure.engine.constraint import constraint
from flexserve.secure.engine.sampler import Sampler, log_probabilities
from flexserve.secure.engine.text import TextStream
from flexserve.secure.shelf import OpenModel
from flexserve.world.messages import (
    ChatPrompt,
    Choice,
    Delta,
    Finished,
    Generate,
    Started,
    Timings,
    TokenLogprob,
    Usage,
    Warm,
)

Send = Callable[[msgspec.Struct], None]


class Generation:
    """Runs one request on a leased model and sends its messages.

    `received` is when the request came in (monotonic seconds). Raises CallerError for a prompt
    that does not fit, CancelledError, and what restoring raises; the caller reports those.
    """

    def __init__(self, entry: OpenModel, request: Generate, received: float, send: Send) -> None:
        self._entry, self._request, self._received, self._send = entry, request, received, send
        self._sampling = request.sampling
        self._stream = TextStream(entry.vocabulary)
        self._scanner = StopScanner(self._sampling.stop)
        grammar = constraint(request, entry.template)
        self._sampler = Sampler(self._sampling, entry.model.vocabulary, grammar)
        self._count = 0

    def run(self) -> Finished:
        """Generate; send Started and Delta…, and return the end, to be sent once the lease is over.

        Who has heard of the end may recall the model's memory at once: it is not in use then.
        """
        began = time.monotonic()
        try:
            tokens = self._prompt()
            self._send(Started(self._request.request, len(tokens)))
            self._entry.context.decode(tokens)
            first = time.monotonic()
            waited = self._entry.context.stats.waited
            reason = self._loop(len(tokens))
        finally:
            self._sampler.close()
        stats = self._entry.context.stats
        timings = Timings(
            queue=_ms(began - self._received),
            restore=_ms(stats.waited),
            allocate=_ms(stats.allocate),
            load=_ms(stats.load),
            decrypt=_ms(stats.decrypt),
            prefill=_ms(first - began - waited),
            decode=_ms(time.monotonic() - first - (stats.waited - waited)),
            ttft=_ms(first - self._received),
            restored_bytes=stats.restored,
        )
        usage = Usage(prompt_tokens=len(tokens), completion_tokens=self._count)
        return Finished(self._request.request, reason, usage, timings)

    def _prompt(self) -> list[int]:
        prompt, vocabulary = self._request.prompt, self._entry.vocabulary
        if isinstance(prompt, ChatPrompt):
            text = self._entry.template.render(prompt)
            beginning = self._entry.template.beginning
            tokens = vocabulary.encode(
                text, special=True, start=not (beginning and text.startswith(beginning))
            )
        else:
            tokens = vocabulary.encode(prompt.text, special=False)
        if not tokens:
            raise CallerError("The prompt is empty.", hint="Send some text.", code="prompt_empty")
        size = self._entry.context.size
        if len(tokens) >= size:
            raise CallerError(
                f"The prompt has {len(tokens)} tokens; the context holds {size}, answer included.",
                hint="Shorten the prompt, or serve with a larger --context.",
                code="context_length_exceeded",
            )
        return tokens

    def _loop(self, used: int) -> str:
        """Sample and decode until an end; return the finish reason."""
        limit = min(self._sampling.max_tokens or self._entry.context.size, self._entry.context.size - used)
        while True:
            token = self._sampler.choose(self._entry.context)
            if self._entry.vocabulary.ends(token):
                self._finish_text()
                return "stop"
            self._count += 1
            self._emit(token)
            if self._scanner.stopped:
                return "stop"
            if self._count >= limit:
                self._finish_text()
                return "length"
            self._entry.context.decode([token])

    def _emit(self, token: int) -> None:
        text = self._scanner.feed(self._stream.feed(token))
        choices = [] if self._sampling.logprobs is None else [self._choice(token, self._sampling.logprobs)]
        self._send(Delta(self._request.request, text, 1, choices))

    def _finish_text(self) -> None:
        text = self._scanner.feed(self._stream.finish()) + self._scanner.finish()
        if text:
            self._send(Delta(self._request.request, text, 0))

    def _choice(self, token: int, count: int) -> Choice:
        scores = log_probabilities(self._entry.context.logits())
        best = np.argpartition(scores, -count)[-count:] if count else np.empty(0, dtype=np.intp)
        best = best[np.argsort(-scores[best], kind="stable")]
        return Choice(self._scored(token, scores), [self._scored(int(other), scores) for other in best])

    def _scored(self, token: int, scores: NDArray[np.float64]) -> TokenLogprob:
        text = self._entry.vocabulary.piece(token).decode("utf-8", "replace")
        return TokenLogprob(text, float(scores[token]))


class Warming:
    """Brings a leased model's weights into memory and reports the time that it took."""

    def __init__(self, entry: OpenModel, request: Warm, received: float) -> None:
        self._entry, self._request, self._received = entry, request, received

    def run(self) -> Finished:
        """Restore; return the end, to be sent once the lease is over."""
        began = time.monotonic()
        stats = self._entry.context.restore()
        timings = Timings(
            queue=_ms(began - self._received),
            restore=_ms(stats.waited),
            allocate=_ms(stats.allocate),
            load=_ms(stats.load),
            decrypt=_ms(stats.decrypt),
            restored_bytes=stats.restored,
        )
        return Finished(self._request.request, "stop", Usage(0, 0), timings)


def _ms(seconds: float) -> float:
    return max(0.0, seconds * 1000)
