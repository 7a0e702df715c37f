"""From one internal request to an answer in the form of any API: in one piece, or as a stream.

Each façade translates its body to a GenerationRequest, and the messages of the secure world back by its
Form. What lies between is here, once for all of them: it holds nothing but what it is sending.
"""

from __future__ import annotations

import abc
import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response

from flexserve.errors import CallerError, FlexServeError, InternalError, UnknownModelError
from flexserve.normal.answer import Answer, AnswerMessage
from flexserve.normal.api.envelope import quota
from flexserve.normal.api.errors import HttpError, from_error
from flexserve.normal.api.pace import Pace
from flexserve.normal.api.sse import PING, ClientGoneError, EventStream, event, while_connected
from flexserve.normal.models_world import ModelsWorld
from flexserve.protocol.answers import Delta, Finished, Prefilled, Started
from flexserve.protocol.prompts import ChatPrompt, Prompt
from flexserve.protocol.requests import Terms
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.statuses import ModelStatus

Json = dict[str, Any]
T = TypeVar("T")

PING_SECONDS = 5.0
MAX_ANSWER = 16 << 20  # characters and log-probabilities collected for an answer in one piece

CLIENT_CLOSED_REQUEST = 499  # nginx's number; nobody is there to read it, only the log


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What is asked for, whatever the API: this, and no more, goes to the secure world."""

    model: str
    prompt: Prompt
    sampling: Sampling
    terms: Terms
    stream: bool = False


class Form(abc.ABC):
    """One answer in the form of one API. Holds one request's state and does no I/O."""

    media_type = "text/event-stream"
    ending = b""  # what follows the last chunk of a stream that ends well

    def encode(self, chunk: Json) -> bytes:
        """Return a chunk as it goes on the wire in a stream."""
        return event(chunk)

    def ping(self) -> bytes:
        """Return what a stream says while there is nothing to say."""
        return PING

    @abc.abstractmethod
    def failure(self, error: HttpError) -> Json:
        """Return the last chunk of a stream that ends in `error`."""

    def began(self, started: Started) -> None:  # noqa: B027  # not every form cares
        """Record how the answer begins."""

    def stopped(self, stop: int) -> None:  # noqa: B027  # not every form cares
        """Record which of the request's stop strings ended the text."""

    @abc.abstractmethod
    def opening(self) -> list[Json]:
        """Return the chunks before any text."""

    @abc.abstractmethod
    def chunks(self, delta: Delta) -> list[Json]:
        """Return the chunks for more text."""

    @abc.abstractmethod
    def closing(self, finished: Finished) -> list[Json]:
        """Return the last chunks: why it ended, and what it took."""

    @abc.abstractmethod
    def whole(self, deltas: list[Delta], finished: Finished) -> Json:
        """Return the answer as one object."""


class PacedForm(Form):
    """The form of an API whose streams can tell how fast an answer comes."""

    pace: Pace | None = None  # where the client asked

    @abc.abstractmethod
    def blank(self) -> Json:
        """Return a chunk that adds nothing to the text."""


class NumberedForm(PacedForm):
    """The form of an API that may give several answers to one request, each with its number."""

    @abc.abstractmethod
    def place(self, chunk: Json, index: int, head: Json) -> None:
        """Say in `chunk` that it is of answer `index` of several; `head` is what their chunks share."""

    @abc.abstractmethod
    def joined(self, wholes: list[Json], usage: Json) -> Any:
        """Return several answers as one, which took `usage` together."""


async def model_of(world: ModelsWorld, name: str | None) -> str:
    """Return `name`, or the name of the only model where it was left out. Raises CallerError."""
    if name is not None:
        return name
    names = [model.name for model in await world.models()]
    if len(names) == 1:
        return names[0]
    raise CallerError(
        "The request names no model, and there is not just one." if names else "There are no models yet.",
        hint="Name one of GET /v1/models." if names else "`flexserve add FILE` adds one.",
        code="model_not_named",
    )


async def status_of(world: ModelsWorld, name: str | None) -> ModelStatus:
    """Return the status of model `name`, or of the only one. Raises CallerError."""
    name = await model_of(world, name)
    for model in await world.models():
        if model.name == name:
            return model
    raise UnknownModelError("There is no such model.", hint="GET /v1/models lists them.")


async def begun(world: ModelsWorld, asked: GenerationRequest) -> Answer:
    """Send `asked` to the secure world; return its answer to come."""
    record = world.metrics.follow(asked.model, quota.get())
    try:
        return await world.generate(asked.model, asked.prompt, asked.sampling, asked.terms, record)
    except BaseException:
        record.lost()
        raise


async def respond(request: Request, asked: GenerationRequest, form: Form) -> Response:
    """Have the secure world answer `asked`, and return the answer in `form`."""
    answer = await begun(request.app.state.world, asked)
    note = request.state.note
    try:
        if not asked.stream:
            finished, deltas, _ = await while_connected(request.receive, collected(answer, form))
            _count(note, asked.model, finished)
            return json_response(form.whole(deltas, finished))
        # What is refused at once is refused by status; after the first ping it must be an event.
        opening = await while_connected(request.receive, next_message(PING_SECONDS, answer))
    except ClientGoneError:
        _give_up(answer, note)
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    except BaseException:
        answer.abandon()
        raise
    events = events_of(answer, form, opening, asked.model, note)
    return EventStream(events, after=lambda: _give_up(answer, note), media_type=form.media_type)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | Response:
    """Return the result of `work`, or the answer that nobody reads when the client goes away."""
    try:
        return await while_connected(request.receive, work)
    except ClientGoneError:
        request.state.note["error"] = "client_gone"
        return Response(status_code=CLIENT_CLOSED_REQUEST)


async def counted(request: Request, model: str | None, prompt: ChatPrompt) -> Response:
    """Return how many tokens a conversation has as `model`, or the only one, would get it."""
    world: ModelsWorld = request.app.state.world
    converted = await unless_gone(request, world.convert(await model_of(world, model), prompt))
    if isinstance(converted, Response):
        return converted
    return json_response({"input_tokens": len(converted.tokens)})


def json_response(body: Any) -> Response:
    """Return `body` as an answer in one piece."""
    return Response(json.dumps(body, ensure_ascii=False), media_type="application/json")


def _give_up(answer: Answer, note: Json) -> None:
    """Cancel what the secure world still does for a client that went away; nothing if it is done."""
    if not answer.ended:
        note["error"] = "client_gone"
    answer.abandon()


async def collected(answer: Answer, form: Form) -> tuple[Finished, list[Delta], int]:
    """Return all of an answer, with its size in characters and log-probabilities; `form` hears how it begins
    and what stops it.

    Raises CallerError for one that is larger than MAX_ANSWER, and what the answer ends with.
    """
    deltas: list[Delta] = []
    size = 0
    async with answer:
        async for message in answer:
            if isinstance(message, Delta):
                deltas.append(message)
                _tell_stop(form, message)
                size += len(message.text) + sum(1 + len(choice.top) for choice in message.choices)
                if size > MAX_ANSWER:
                    raise CallerError("The answer is too long for one piece.", hint="Stream it.")
            elif isinstance(message, Started):
                form.began(message)
            elif isinstance(message, Finished):
                return message, deltas, size
    raise unended()


async def events_of(
    answer: Answer, form: Form, first: AnswerMessage | None, model: str, note: Json
) -> AsyncIterator[bytes]:
    """Yield the pieces of a stream; an error becomes the last one, without the ending of a whole answer."""
    if isinstance(first, Started):
        form.began(first)  # some say in what they open with how the answer begins
    for chunk in form.opening():
        yield form.encode(chunk)
    message, spoke = first, time.monotonic()
    try:
        while True:
            if isinstance(message, Finished):
                _count(note, model, message)
            for chunk in _chunks_of(form, message, first):
                yield form.encode(chunk)
                spoke = time.monotonic()
            if isinstance(message, Finished):
                if form.ending:
                    yield form.ending
                return
            # Text that may become a call is held back, however long it gets.
            if message is None or time.monotonic() - spoke >= PING_SECONDS:
                yield form.ping()
                spoke = time.monotonic()
            message = await next_message(PING_SECONDS, answer)
    except FlexServeError as error:
        note.update(error=error.code)
        yield form.encode(form.failure(from_error(error)))


def _chunks_of(form: Form, message: AnswerMessage | None, first: AnswerMessage | None) -> list[Json]:
    """Return the chunks of a stream for one message of an answer, of which `form` knows the `first`."""
    match message:
        case Started():
            if message is not first:
                form.began(message)
            return _read(form, message)
        case Prefilled():
            return _read(form, message)
        case Delta():
            _tell_stop(form, message)
            return _paced(form, message)
        case Finished():
            return form.closing(message)
        case _:
            return []


def _read(form: Form, message: Started | Prefilled) -> list[Json]:
    """Return the chunks that say how much of the prompt is computed."""
    if not isinstance(form, PacedForm) or (pace := form.pace) is None:
        return []
    if isinstance(message, Started):
        pace.began(message)
    done = message.cached_tokens if isinstance(message, Started) else message.tokens
    progress = pace.prompt_progress(done)
    return [{**form.blank(), **progress}] if progress else []


def _paced(form: Form, delta: Delta) -> list[Json]:
    """Return the chunks for more text; the last of them says how long the answer took so far."""
    chunks = form.chunks(delta) if delta.text or delta.choices else []
    if isinstance(form, PacedForm) and (pace := form.pace) is not None:
        pace.took(delta)
        if chunks:
            chunks[-1] |= pace.timings()
    return chunks


async def next_message(seconds: float, answer: Answer) -> AnswerMessage | None:
    """Return the next message of `answer`, or None when none comes within `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            return await anext(answer)
    except TimeoutError:
        return None
    except StopAsyncIteration:
        raise unended() from None


def unended() -> FlexServeError:
    """Return the error of an answer that broke off without a reason."""
    return InternalError("The answer ended without an end.", hint="Report this with the server's log.")


def _tell_stop(form: Form, delta: Delta) -> None:
    if delta.stop is not None:
        form.stopped(delta.stop)


def _count(note: Json, model: str, finished: Finished) -> None:
    """Log what a request took. Not before its end: a name that is no model's may be anything."""
    usage = finished.usage
    note.update(model=model, prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)
