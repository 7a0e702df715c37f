"""One generation, from prompt to last token: its tokens, its sampler, its text, its times."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray

from flexserve.protocol.answers import Choice, Delta, Finished, Prefilled, Started, TokenLogprob, Usage
from flexserve.protocol.requests import Generate
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.trusted_app import Progress
from flexserve.trusted.engine.context import Span
from flexserve.trusted.engine.sampler import log_probabilities
from flexserve.trusted.kv.slots import Slot
from flexserve.trusted.open_model import OpenModel
from flexserve.trusted.requests.context_shift import ContextShift, shift_of
from flexserve.trusted.text.preparation import Prepared
from flexserve.trusted.text.stops import StopScanner
from flexserve.trusted.text.tokenizer import TextStream
from flexserve.trusted.weights.job import RestoreStats

Send = Callable[[msgspec.Struct], None]


class Generation:
    """A request on its way. Belongs to the engine thread.

    `tokens` are the prompt's, then those generated; the first `done` of them are in the KV cache.
    """

    def __init__(self, prepared: Prepared, request: Generate, received: float, send: Send) -> None:
        """`received`: when the request came in (monotonic seconds)."""
        entry = prepared.entry
        self.entry, self.request = entry, request
        self._received, self._send = received, send
        self._sampling = request.sampling
        self.tokens = list(prepared.prompt.tokens)
        self._prompt_size, self._prepared = len(self.tokens), prepared
        self.slot: Slot | None = None
        self.done = self._cached = self._count = 0
        self._was_damaged = False
        self._shift = _shift_of(entry, self._sampling, self._prompt_size)
        self._shifted = False
        self._limit = self._answer_limit()
        self._stream = TextStream(entry.vocabulary, prepared.prompt.shown)
        self._scanner = StopScanner(self._sampling.stop)
        self._sampler, self._thoughts = prepared.sampler, prepared.thoughts
        self._reason: str | None = None  # why the answer ended
        self._thrown = 0  # tokens that were computed after its end
        self._said = 0  # tokens of the prompt whose probabilities were sent
        self._told = 0  # tokens of the prompt that were said to be computed
        self._stats = RestoreStats()
        self._began = self._first = 0.0
        self._first_waited = 0.0
        self._guesses: list[int] = []  # of the next tokens, for the next graph to check
        self._guessed = self._right = 0  # guesses that were checked, and those of them that were right

    def begin(self, slot: Slot, cached: int, began: float) -> None:
        """Start in `slot`, whose first `cached` tokens are ours. `began`: when it left the queue."""
        self.slot, self._cached, self._began = slot, cached, began
        self.done = cached
        slot.tokens = self.tokens[:cached]
        prompt = self._prepared.prompt
        self._send(Started(self.request.request, self._prompt_size, prompt.notation, prompt.begun, cached))
        self._told = cached
        if prompt.echo:
            self._send(Delta(self.request.request, prompt.echo, 0))

    @property
    def number(self) -> int:
        """Its request's number."""
        return self.request.request

    @property
    def sequence(self) -> int:
        """The sequence of the context that it is."""
        return self._slot.number

    @property
    def _slot(self) -> Slot:
        assert self.slot is not None, "it has not begun"
        return self.slot

    def broke_off(self) -> None:
        """Record that a graph of it broke off: what of its tokens reached the KV cache is unknown."""
        self._slot.tokens, self._guesses = [], []

    def go_on(self) -> None:
        """Take up again after a graph that broke off.

        What the cache had before stays, where the model can forget a part. Raises GrantRefusedError.
        """
        self._guesses = []
        self.done = self.entry.context.take(self.sequence, keep=self.done)
        self._slot.tokens = self.tokens[: self.done]

    def go_on_after_damage(self) -> bool:
        """Take up again as `go_on`; return False, having done nothing, when this is not the first time."""
        if self._was_damaged:
            return False
        self._was_damaged = True
        self.go_on()
        return True

    def progress(self) -> Progress:
        """Return where it is."""
        return Progress(
            self.number, self.pending, sequence=self.sequence, apart=self.entry.context.prompts_apart
        )

    @property
    def pending(self) -> int:
        """How many tokens are to be computed before the next one can be chosen."""
        return len(self.tokens) - self.done

    @property
    def scores(self) -> bool:
        """Whether the probabilities of the next tokens to compute are asked for: they are the prompt's."""
        return self._sampling.scores_prompt and self._said < self._prompt_size

    def span(self, limit: int) -> Span:
        """Return the next tokens to compute, at most `limit`."""
        if self._guesses:
            return Span(self.sequence, self.done, [self.tokens[self.done], *self._guesses], scored=True)
        return Span(self.sequence, self.done, self.tokens[self.done : self.done + limit], scored=self.scores)

    @property
    def checks(self) -> bool:
        """Whether its next graph checks guesses."""
        return bool(self._guesses)

    def room(self, most: int) -> int:
        """Return how many guesses its next graph can check, `most` at most."""
        context = self.entry.context
        if self.pending != 1 or self.scores or not context.goes_back:
            return 0
        full = context.size if self._shift is None else self._shift.size - 2  # it shifts between two graphs
        left = min(self._limit - self._count - 1, full - len(self.tokens))
        return max(0, min(most, left, context.outputs - 1))

    def take_guesses(self, guesses: list[int]) -> None:
        """Have the next graph check `guesses`, of which there are no more than `room` says."""
        self._guesses = guesses

    def check(self, logits: NDArray[np.float32]) -> tuple[int, str | None]:
        """Choose the next token, and after each guess that is what was chosen the one behind it.

        `logits` are those after the last token and after each guess. Each token is chosen as it would be
        without guesses: by the scores after those before it. Returns how many guesses were right, and why
        the last token was the last. What the cache has of wrong guesses is forgotten.
        """
        guesses, self._guesses = self._guesses, []
        right, reason = 0, self.choose(logits[0])
        self._guessed += len(guesses)
        for guess, after in zip(guesses, logits[1:], strict=True):
            if reason is not None or self.tokens[-1] != guess:
                break
            right += 1
            self._right += 1
            reason = self.choose(after)
        self.done = self.entry.context.take(self.sequence, keep=self.done - len(guesses) + right)
        self._slot.tokens = self.tokens[: self.done]
        return right, reason

    def took(self, span: Span, stats: RestoreStats) -> None:
        """Note that `span` was computed, and what it cost."""
        self.done += len(span.tokens)
        self._slot.tokens += span.tokens
        self._slot.sealed = False
        self._stats.include(stats)
        if self.request.progress and self._told < self.done <= self._prompt_size:
            self._told = self.done
            self._send(Prefilled(self.request.request, self.done))

    def say_prompt(self, span: Span, logits: NDArray[np.float32]) -> None:
        """Send the probabilities of the prompt's tokens behind those of `span`, whose logits are given.

        Their shape is (tokens of the span, vocabulary). What was sent before a graph broke off is not
        sent again.
        """
        count = self._sampling.logprobs or 0
        choices = []
        if not self._said:
            first = TokenLogprob(self.entry.vocabulary.piece(self.tokens[0]), None, self.tokens[0])
            choices.append(Choice(first, []))
            self._said = 1
        for place in range(max(self._said, span.start + 1), min(self.done + 1, self._prompt_size)):
            choices.append(self._choice(self.tokens[place], logits[place - 1 - span.start], count))
            self._said = place + 1
        if choices:
            self._send(Delta(self.request.request, "", 0, choices))

    def choose(self, logits: NDArray[np.float32]) -> str | None:
        """Choose the next token by `logits` and send its text; return why it was the last.

        Where the length of the answer is rounded, others come after its end: to who watches, all are alike.
        """
        count, goes_on = self._count, self._reason is None
        if goes_on:
            self._reason = self._choose(logits)
        if self._reason is None or self.request.rounding == 1:
            return self._reason
        if self._count == count:
            if not goes_on:
                self._sampler.choose(logits)  # which takes as long as before
            self._thrown += 1
            self.tokens.append(self.tokens[-1])
            self._send(Delta(self.request.request, "", 1))
        full = len(self.tokens) >= self.entry.context.size
        return self._reason if full or (self._count + self._thrown) % self.request.rounding == 0 else None

    def _choose(self, logits: NDArray[np.float32]) -> str | None:
        if not self._count:
            self._first, self._first_waited = time.monotonic(), self._stats.waited
        if not self._limit:
            return "length"
        token = self._next(logits)
        if self.entry.vocabulary.ends(token) or token in self._sampling.stop_token_ids:
            self._finish_text()
            return "stop"
        self._sampler.accept(token)
        self._count += 1
        self.tokens.append(token)
        self._emit(token, logits)
        if self._scanner.stopped:
            return "stop"
        if self._count >= self._limit:
            self._finish_text()
            return "length"
        if self._shift is not None and len(self.tokens) >= self._shift.size:
            self._make_room(self._shift)
        return None

    def finished(self, reason: str) -> Finished:
        """Return the last message. Send it when the slot is free: who hears of the end may recall."""
        stats, ended = self._stats, time.monotonic()
        timings = stats.timings(
            queue=self._began - self._received,
            prefill=self._first - self._began - self._first_waited,
            decode=ended - self._first - (stats.waited - self._first_waited),
            ttft=self._first - self._received,
        )
        timings = msgspec.structs.replace(timings, guessed=self._guessed, guessed_right=self._right)
        return Finished(
            *(self.request.request, reason, Usage(self._prompt_size, self._count, self._cached), timings),
            shifted=self._shifted,
        )

    def close(self) -> None:
        """Free the sampler. Always safe."""
        self._sampler.close()

    # ---- inside --------------------------------------------------------------------------------

    def _answer_limit(self) -> int:
        """Return how many tokens the answer has at most."""
        asked, room = self._sampling.max_tokens, self.entry.context.size - self._prompt_size
        if self._shift is not None:
            return self._shift.longest_answer if asked is None else asked
        return room if asked is None else min(asked, room)

    def _make_room(self, shift: ContextShift) -> None:
        """Go on without a part of what the full context holds; what is behind that is to be computed anew."""
        self._shifted, self._slot.coming = True, ()  # nobody waits any more for the prompt's KV
        self.tokens, self.done = shift.shift(self.tokens)
        self.go_on()

    def _next(self, logits: NDArray[np.float32]) -> int:
        """Return the next token: the model's choice, or one that ends a thought."""
        if (forced := self._thoughts.forced()) is not None:
            return forced
        token = self._sampler.choose(logits)
        if self._thoughts.inside and self.entry.vocabulary.ends(token):
            return self._thoughts.instead_of_end(token)
        return token

    def _emit(self, token: int, logits: NDArray[np.float32]) -> None:
        text = self._stream.feed(token)
        if self._thoughts.took(text) and self._prepared.confinement is not None:
            self._sampler.confine(self._prepared.confinement)
        if self._count >= self._sampling.min_tokens:
            text = self._scanner.feed(text)
        choices: list[Choice] = []
        if self._sampling.logprobs is not None:
            choices.append(self._said_choice(token, logits, self._sampling.logprobs))
        self._send(Delta(self.request.request, text, 1, choices, self._scanner.found, [token]))

    def _finish_text(self) -> None:
        text = self._scanner.feed(self._stream.finish()) + self._scanner.finish()
        if text or self._scanner.stopped:
            self._send(Delta(self.request.request, text, 0, stop=self._scanner.found))

    def _said_choice(self, token: int, logits: NDArray[np.float32], count: int) -> Choice:
        """Return the choice of `token` as it is to be told."""
        if not self._sampling.after_samplers:
            return self._choice(token, logits, count)
        left = self._sampler.left()
        told = {
            other: TokenLogprob(self.entry.vocabulary.piece(other), score, other) for other, score in left
        }
        # One that ends a thought, or that a grammar took instead, was none of those.
        own = told.get(token) or TokenLogprob(self.entry.vocabulary.piece(token), 0.0, token)
        return Choice(own, list(told.values())[:count])

    def _choice(self, token: int, logits: NDArray[np.float32], count: int) -> Choice:
        scores = log_probabilities(logits)
        best = np.argpartition(scores, -count)[-count:] if count else np.empty(0, dtype=np.intp)
        best = best[np.argsort(-scores[best], kind="stable")]
        return Choice(self._scored(token, scores), [self._scored(int(other), scores) for other in best])

    def _scored(self, token: int, scores: NDArray[np.float64]) -> TokenLogprob:
        return TokenLogprob(self.entry.vocabulary.piece(token), float(scores[token]), token)


def _shift_of(entry: OpenModel, sampling: Sampling, prompt: int) -> ContextShift | None:
    """Return how a full context is shifted; None: the answer ends there."""
    if not (entry.limits.shift and sampling.shift):
        return None
    return shift_of(
        entry.context.size,
        prompt=prompt,
        begun=entry.vocabulary.begins,
        keep=sampling.n_keep,
        discard=sampling.n_discard,
    )
