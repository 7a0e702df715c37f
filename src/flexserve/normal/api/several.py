"""Several answers to one request: to several prompts, or several to each.

Each answer is a request of its own to the secure world, which computes those that it has together. Some are
asked for ahead of the one that is sent, so that a request of many does not fill the queue.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
from fastapi import Request
from starlette.responses import Response

from flexserve.errors import CallerError
from flexserve.normal.answer import Answer, AnswerMessage
from flexserve.normal.api.answering import (
    MAX_ANSWER,
    PING_SECONDS,
    Form,
    GenerationRequest,
    Json,
    NumberedForm,
    PacedForm,
    begun,
    collected,
    events_of,
    json_response,
    next_message,
    respond,
    unless_gone,
)
from flexserve.normal.api.errors import HttpError
from flexserve.normal.api.forms import usage_of
from flexserve.normal.api.sse import EventStream
from flexserve.normal.models_world import ModelsWorld
from flexserve.protocol.answers import Delta, Finished, Started, Timings, Usage
from flexserve.protocol.prompts import Prompt
from flexserve.protocol.sampling import Sampling

_AHEAD = 4  # answers asked for at once


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """`count` answers to each of `prompts`, the likeliest of `tried`. `with_usage`: at a stream's end."""

    prompts: Sequence[Prompt]
    count: int = 1
    tried: int = 1
    with_usage: bool = False

    def requests(self, asked: GenerationRequest) -> list[GenerationRequest]:
        """Return `asked` for each answer that is tried: each has a seed of its own."""
        samplings = [
            msgspec.structs.replace(asked.sampling, **self._own(asked.sampling, number))
            for number in range(self.tried)
        ]
        return [
            dataclasses.replace(asked, prompt=prompt, sampling=sampling)
            for prompt in self.prompts
            for sampling in samplings
        ]

    def _own(self, sampling: Sampling, number: int) -> Json:
        seed, logprobs = sampling.seed, sampling.logprobs
        own: Json = {} if seed is None else {"seed": (seed + number) % (1 << 63)}
        return own if self.tried == self.count or logprobs is not None else own | {"logprobs": 0}


async def respond_with(
    request: Request, asked: GenerationRequest, wanted: Wanted, make: Callable[[bool], NumberedForm]
) -> Response:
    """Have the secure world answer `asked` as often as `wanted`; `make` makes the form of one answer.

    It takes whether a stream ends with usage.
    """
    requests = wanted.requests(asked)
    if len(requests) == 1:
        return await respond(request, requests[0], make(wanted.with_usage))
    several = _Several(request, requests, wanted, make)
    return await (several.stream() if asked.stream else several.whole())


class _Several:
    """The answers to one request, while they come."""

    def __init__(
        self,
        request: Request,
        requests: Sequence[GenerationRequest],
        wanted: Wanted,
        make: Callable[[bool], NumberedForm],
    ) -> None:
        self._request, self._requests, self._wanted, self._make = request, requests, wanted, make
        self._world: ModelsWorld = request.app.state.world
        self._note: Json = request.state.note
        self._begun: list[Answer] = []
        self._ends: list[Finished] = []

    async def whole(self) -> Response:
        """Return all answers in one piece."""
        found = await unless_gone(self._request, self._all())
        return found if isinstance(found, Response) else json_response(found)

    async def _all(self) -> Any:
        wholes: list[tuple[float, Json]] = []
        size = 0
        async with contextlib.aclosing(self._answers()) as answers:
            async for answer in answers:
                form = self._make(False)
                finished, deltas, length = await collected(answer, form)
                self._ends.append(finished)
                wholes.append((_likelihood(deltas), form.whole(deltas, finished)))
                size += length
                if size > MAX_ANSWER:
                    raise CallerError("The answers are too long for one piece.", hint="Stream them.")
        tried, count = self._wanted.tried, self._wanted.count
        kept = [
            whole
            for at in range(0, len(wholes), tried)
            for _, whole in sorted(wholes[at : at + tried], key=lambda one: -one[0])[:count]
        ]
        return self._make(False).joined(kept, self._usage())

    async def stream(self) -> Response:
        """Return the answers as a stream, one behind the other."""
        answers = self._answers()
        try:
            first = await anext(answers)
            # What is refused at once is refused by status; after the first ping it must be an event.
            opening = await unless_gone(self._request, next_message(PING_SECONDS, first))
        except BaseException:
            self._give_up()
            raise
        if isinstance(opening, Response):
            self._give_up()
            return opening
        events = self._events(answers, first, opening)
        return EventStream(events, after=self._give_up, media_type=Form.media_type)

    async def _events(
        self, answers: AsyncIterator[Answer], first: Answer, opening: AnswerMessage | None
    ) -> AsyncIterator[bytes]:
        head: Json = {}
        answer: Answer | None = first
        index = 0
        while answer is not None:
            placed = _Placed(self._make(False), index, head, self._ends)
            message = opening if answer is first else await next_message(PING_SECONDS, answer)
            async for piece in events_of(answer, placed, message, self._requests[0].model, self._note):
                yield piece
            if "error" in self._note:
                return
            answer, index = await anext(answers, None), index + 1
        form, usage = self._make(False), self._usage()
        if self._wanted.with_usage:
            yield form.encode({**head, "choices": [], "usage": usage})
        if form.ending:
            yield form.ending

    async def _answers(self) -> AsyncGenerator[Answer, None]:
        """Yield the answers in their order, a few of them begun ahead."""
        waiting, started = deque(self._requests), deque[Answer]()
        try:
            while waiting or started:
                while waiting and len(started) < _AHEAD:
                    started.append(await begun(self._world, waiting.popleft()))
                    self._begun.append(started[-1])
                yield started[0]
                started.popleft()
        finally:
            for answer in started:
                answer.abandon()

    def _usage(self) -> Json:
        """Return what all answers took together, and log it; a prompt counts once, however many there are."""
        usages = [finished.usage for finished in self._ends]
        firsts = usages[:: self._wanted.tried]
        usage = Usage(
            sum(one.prompt_tokens for one in firsts),
            sum(one.completion_tokens for one in usages),
            sum(one.cached_tokens for one in firsts),
        )
        names = Timings.__struct_fields__
        sums = {name: sum(getattr(end.timings, name) for end in self._ends) for name in names}
        model = self._requests[0].model
        self._note.update(
            model=model, prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens
        )
        return usage_of(Finished(0, "stop", usage, Timings(**sums)))

    def _give_up(self) -> None:
        """Cancel what the secure world still does for a client that went away; nothing if all is done."""
        for answer in self._begun:
            if not answer.ended:
                self._note["error"] = "client_gone"
            answer.abandon()


class _Placed(PacedForm):
    """The form of one of several answers: its chunks have its number, and the head of the first one's."""

    def __init__(self, form: NumberedForm, index: int, head: Json, ends: list[Finished]) -> None:
        self._form, self._index, self._head, self._ends = form, index, head, ends
        self.pace = form.pace

    def failure(self, error: HttpError) -> Json:
        """Return the chunk of an error."""
        return self._form.failure(error)

    def began(self, started: Started) -> None:
        """Record how the answer begins."""
        self._form.began(started)

    def stopped(self, stop: int) -> None:
        """Record what stopped the text."""
        self._form.stopped(stop)

    def opening(self) -> list[Json]:
        """Return the chunks before any text."""
        return self._placed(self._form.opening())

    def chunks(self, delta: Delta) -> list[Json]:
        """Return the chunks for more text."""
        return self._placed(self._form.chunks(delta))

    def blank(self) -> Json:
        """Return a chunk that adds nothing."""
        return self._placed([self._form.blank()])[0]

    def closing(self, finished: Finished) -> list[Json]:
        """Return the last chunks."""
        self._ends.append(finished)
        return self._placed(self._form.closing(finished))

    def whole(self, deltas: list[Delta], finished: Finished) -> Json:
        """Return the answer as one object."""
        return self._form.whole(deltas, finished)

    def _placed(self, chunks: list[Json]) -> list[Json]:
        for chunk in chunks:
            self._form.place(chunk, self._index, self._head)
        return chunks


def _likelihood(deltas: Sequence[Delta]) -> float:
    """Return the mean log-probability of an answer's tokens."""
    found = [choice.token.logprob or 0.0 for delta in deltas if delta.tokens for choice in delta.choices]
    return sum(found) / len(found) if found else 0.0
