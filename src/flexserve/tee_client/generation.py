"""One generation: its tokens as the application says them, its text, its times."""

from __future__ import annotations

import dataclasses
import functools
import secrets
import time
from collections.abc import Callable, Sequence

import msgspec

from flexserve.errors import CallerError
from flexserve.protocol.answers import (
    Choice,
    Delta,
    Finished,
    Prefilled,
    Started,
    Timings,
    TokenLogprob,
    Usage,
)
from flexserve.protocol.requests import Generate
from flexserve.tee_client.bounds import Bounds
from flexserve.tee_client.messages import Ask, Finish, Progress, broken, owner_numbers, packed
from flexserve.tee_client.open_model import OpenModel
from flexserve.tee_client.sampling import Said, Score, said, settings
from flexserve.tee_client.services import Services
from flexserve.trusted.kv.slots import Slot
from flexserve.trusted.requests.context_shift import ContextShift, shift_of
from flexserve.trusted.text import confining
from flexserve.trusted.text.prompt import Prompt, tokenized
from flexserve.trusted.text.rendering.renderer import Renderer
from flexserve.trusted.text.stops import StopScanner
from flexserve.trusted.text.tokenizer import TextStream

_MOST_LOGPROB = 1e-3  # what rounding makes of 0

Send = Callable[[msgspec.Struct], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """A request ready to be computed."""

    prompt: Prompt
    bounds: Bounds


class Generation:
    """A request on its way in a sequence of its model. Belongs to the engine thread."""

    def __init__(
        self, services: Services, entry: OpenModel, request: Generate, prepared: Prepared, slot: Slot
    ) -> None:
        self.entry, self.request, self.slot = entry, request, slot
        self._app, self._bounds = services.app, prepared.bounds
        self._prompt = prompt = prepared.prompt
        self.tokens = list(prompt.tokens)
        self._size = len(self.tokens)
        self.pending = self._size  # tokens to compute before the next one can be chosen
        self._cached = self._count = self._told = 0
        self._prompt_told = 0 if request.sampling.scores_prompt else self._size  # whose scores were told
        self._shift = _shift_of(entry, request, self._size)
        self._shifted = False
        self._limit = self._answer_limit()
        self._stream = TextStream(entry.vocabulary, prompt.shown)
        self._scanner = StopScanner(request.sampling.stop)
        self._send: Send = lambda _message: None
        self._received = self._began = self._first = 0.0
        self._loaded, self._waited = entry.weights.loaded, entry.weights.waited
        self._loading = entry.weights.seconds
        self._first_waited = 0.0

    def begin(self, received: float, began: float, send: Send) -> None:
        """Begin it; `received`, `began`: when it came in, and left the queue (monotonic seconds)."""
        self._received, self._began, self._send = received, began, send
        request, prompt = self.request, self._prompt
        vocabulary, where = self.entry.vocabulary, (self.entry.number, self.slot.number)
        whose = request.owner if reuses(request) else secrets.token_hex(16)  # else it is nobody's
        encode = functools.partial(vocabulary.encode, special=False, start=False)
        sampling = settings(request.sampling, encode, vocabulary.size)
        numbers = (max(1, self._limit), *owner_numbers(whose))
        reply = self._app.do(Ask.BEGIN, *where, *numbers, payload=packed(self.tokens))
        self.pending = reply.values[0]
        if not 0 < self.pending <= self._size or (
            self._prompt_told < self._size and self.pending < self._size
        ):
            raise broken("it computes what was not asked")
        self._app.do(Ask.SAMPLING, *where, payload=sampling)
        self._cached = self._told = self._size - self.pending
        self.entry.conversations.began(self.slot, self.tokens[: self._cached])
        send(Started(request.request, self._size, prompt.notation, prompt.begun, self._cached))
        if prompt.echo:
            send(Delta(request.request, prompt.echo, 0))

    def bound(self) -> None:
        """Tell the application what the next token may be, if that is not any."""
        admitted = self._bounds.next()
        if admitted is not None:
            self._app.do(Ask.ADMIT, self.entry.number, self.slot.number, payload=admitted)

    def took(self, progress: Progress) -> Finished | None:
        """Take in what a step brought; return the end, if that was it.

        Raises CallerError when no token can come next, or nothing may come behind one.
        """
        done = self._size - progress.pending
        if self.request.progress and not progress.said and self._told < done:
            self._told = done
            self._send(Prefilled(self.request.request, done))
        self.pending = progress.pending
        if progress.finished is Finish.STUCK:
            raise CallerError("No token is left to come next.", hint="Forbid fewer tokens.")
        told = progress.said > self._count or self._prompt_told < self._size
        reason = self._said() if told or progress.finished is not Finish.NO else None
        if reason is None and progress.finished is Finish.LENGTH and self._shift is not None:
            self._make_room(self._shift)
            return None
        if reason is None and progress.finished is not Finish.NO:
            self._finish_text()
            stops = progress.finished is Finish.STOP and self._limit  # else none was to come
            reason = "stop" if stops else "length"
        return self._finished(reason) if reason is not None else None

    def close(self) -> None:
        """End it in the application; its KV stays in its sequence, if that is to be used again."""
        self._app.do(Ask.END, self.entry.number, self.slot.number)
        self.slot.tokens = self.tokens[: len(self.tokens) - self.pending]
        self.slot.sealed = False
        self.entry.conversations.release(self.slot, keep=reuses(self.request))

    # ---- inside --------------------------------------------------------------------------------

    def _answer_limit(self) -> int:
        asked, room = self.request.sampling.max_tokens, self.entry.context - self._size
        if self._shift is not None:
            return self._shift.longest_answer if asked is None else asked
        return room if asked is None else min(asked, room)

    def _said(self) -> str | None:
        """Take in the tokens that were said; return why one of them was the last."""
        reply = self._app.do(Ask.SAID, self.entry.number, self.slot.number)
        heard = said(reply, self.request.sampling.logprobs)
        of_prompt = self._say_prompt(heard)
        for place, token in enumerate(heard.tokens[of_prompt:], of_prompt):
            if token >= self.entry.vocabulary.size:
                raise broken("a token is none")
            if (reason := self._take(token, self._choices(heard, place))) is not None:
                return reason
        if heard.tokens[of_prompt:] and not self._first:
            self._at_first()
        return None

    def _say_prompt(self, heard: Said) -> int:
        """Send the scores of the prompt's tokens that are told first; return how many tokens those are."""
        if self._prompt_told == self._size:
            return 0
        choices = []
        if not self._prompt_told:
            first = self.tokens[0]
            choices.append(Choice(TokenLogprob(self.entry.vocabulary.piece(first), None, first), []))
            self._prompt_told = 1
        tokens = self.tokens[self._prompt_told : min(self._size, self._prompt_told + len(heard.tokens))]
        if tokens != heard.tokens[: len(tokens)]:
            raise broken("it scores what was not asked")
        choices += [choice for place in range(len(tokens)) for choice in self._choices(heard, place)]
        self._prompt_told += len(tokens)
        self._send(Delta(self.request.request, "", 0, choices))
        return len(tokens)

    def _make_room(self, shift: ContextShift) -> None:
        """Go on without a part of what the full context holds; what is behind that is computed anew."""
        self._shifted, self.slot.coming = True, ()  # nobody waits any more for the prompt's KV
        size = len(self.tokens)
        self.tokens, kept = shift.shift(self.tokens)
        gone = kept + size - len(self.tokens)
        reply = self._app.do(Ask.SHIFT, self.entry.number, self.slot.number, kept, gone)
        self.pending = reply.values[0]
        if not 0 < self.pending <= len(self.tokens):
            raise broken("it computes what was not asked")

    def _choices(self, heard: Said, place: int) -> list[Choice]:
        """Return what is told of a token, where that was asked for."""
        if not heard.scores:
            return []
        own, likeliest = heard.scores[place]
        return [Choice(self._scored(own), [self._scored(each) for each in likeliest])]

    def _scored(self, score: Score) -> TokenLogprob:
        if score.token >= self.entry.vocabulary.size or not score.value <= _MOST_LOGPROB:
            raise broken("a log-probability is none")
        return TokenLogprob(self.entry.vocabulary.piece(score.token), min(score.value, 0.0), score.token)

    def _take(self, token: int, choices: list[Choice]) -> str | None:
        if not self._first:
            self._at_first()
        self.tokens.append(token)
        if not self._limit:
            return "length"
        self._count += 1
        text = self._stream.feed(token)
        self._bounds.took(token, text)
        if self._count >= self.request.sampling.min_tokens:
            text = self._scanner.feed(text)
        self._send(Delta(self.request.request, text, 1, choices, self._scanner.found, [token]))
        if self._scanner.stopped:
            return "stop"
        if self._count >= self._limit:
            self._finish_text()
            return "length"
        return None

    def _at_first(self) -> None:
        self._first = time.monotonic()
        self._first_waited = self.entry.weights.waited - self._waited

    def _finish_text(self) -> None:
        text = self._scanner.feed(self._stream.finish()) + self._scanner.finish()
        if text or self._scanner.stopped:
            self._send(Delta(self.request.request, text, 0, stop=self._scanner.found))

    def _finished(self, reason: str) -> Finished:
        ended, weights = time.monotonic(), self.entry.weights
        waited = weights.waited - self._waited
        first = self._first or ended
        timings = Timings(
            queue=milliseconds(self._began - self._received),
            restore=milliseconds(waited),
            load=milliseconds(weights.seconds - self._loading),
            prefill=milliseconds(first - self._began - self._first_waited),
            decode=milliseconds(ended - first - (waited - self._first_waited)),
            ttft=milliseconds(first - self._received),
            restored_bytes=weights.loaded - self._loaded,
        )
        usage = Usage(self._size, self._count, self._cached)
        return Finished(self.request.request, reason, usage, timings, shifted=self._shifted)


def prepared(request: Generate, entry: OpenModel, renderer: Renderer) -> Prepared:
    """Return `request` prepared: its prompt in tokens, and what its answer may be.

    Raises CallerError for a prompt that is empty or does not fit, and for what cannot be rendered or
    enforced; StoredDataError for a template that is wrong.
    """
    template, vocabulary = entry.template, entry.vocabulary
    prompt = tokenized(request, template, vocabulary, entry.context)
    confinement = confining.confinement(request, prompt, template, vocabulary, renderer)
    must_end = confinement is not None
    thoughts = confining.thoughts(request, prompt, vocabulary, must_end=must_end)
    return Prepared(prompt, Bounds(vocabulary, thoughts, confinement))


def known(request: Generate, tokens: Sequence[int]) -> Sequence[int]:
    """Return the prompt's tokens whose KV may be used again: the last one is always computed."""
    return tokens[:-1] if reuses(request) else []


def reuses(request: Generate) -> bool:
    """Return whether KV of earlier requests is used, and that of this one is kept."""
    return request.reuse and not request.sampling.scores_prompt


def _shift_of(entry: OpenModel, request: Generate, prompt: int) -> ContextShift | None:
    """Return how a full context is shifted; None: the answer ends there."""
    sampling = request.sampling
    if not (entry.limits.shift and sampling.shift):
        return None
    return shift_of(
        entry.context,
        prompt=prompt,
        begun=entry.vocabulary.begins,
        keep=sampling.n_keep,
        discard=sampling.n_discard,
    )


def milliseconds(seconds: float) -> float:
    """Return a time as answers have it."""
    return max(0.0, 1000 * seconds)
