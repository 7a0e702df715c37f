"""POST /v1/chat/completions and /v1/completions: relays; holds nothing but what it is sending."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from starlette.responses import Response

from flexserve.errors import CallerError, FlexServeError, InternalError
from flexserve.normal.answer import Answer, AnswerMessage
from flexserve.normal.api.errors import from_error
from flexserve.normal.api.forms import ChatForm, CompletionForm, Form
from flexserve.normal.api.schemas import ChatRequest, CompletionRequest
from flexserve.normal.api.sse import DONE, PING, ClientGoneError, EventStream, event, while_connected
from flexserve.normal.world import World
from flexserve.protocol.bounds import MAX_TOOL_CALLS
from flexserve.protocol.messages import ChatPrompt, Delta, Embedded, Finished, Sampling, Started, TextPrompt

PING_SECONDS = 5.0
MAX_ANSWER = 16 << 20  # characters and log-probabilities collected for an answer in one piece

CLIENT_CLOSED_REQUEST = 499  # nginx's number; nobody is there to read it, only the log

router = APIRouter(prefix="/v1", tags=["generation"])


@router.post("/chat/completions")
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    prompt = body.prompt()
    most_calls = 0 if prompt.tools is None else 1 if body.parallel_tool_calls is False else MAX_TOOL_CALLS
    form = ChatForm(body.model, with_logprobs=bool(body.logprobs), most_calls=most_calls)
    return await _respond(request, body, form, prompt, body.sampling())


@router.post("/completions")
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue a text."""
    form = CompletionForm(body.model, with_logprobs=body.logprobs is not None)
    return await _respond(request, body, form, body.text(), body.sampling())


async def _respond(
    request: Request,
    body: ChatRequest | CompletionRequest,
    form: Form,
    prompt: ChatPrompt | TextPrompt,
    sampling: Sampling,
) -> Response:
    world: World = request.app.state.world
    record = world.metrics.follow(body.model)
    try:
        terms = body.terms(request.state.key)
        answer = await world.generate(body.model, prompt, sampling, terms, record)
    except BaseException:
        record.lost()
        raise
    note = request.state.note
    try:
        if not body.stream:
            whole = await while_connected(request.receive, _collect(answer, form))
            note.update(model=body.model, **_counts(whole["usage"]))
            return Response(json.dumps(whole, ensure_ascii=False), media_type="application/json")
        # What is refused at once is refused by status; after the first ping it must be an event.
        opening = await while_connected(request.receive, _within(PING_SECONDS, answer))
    except ClientGoneError:
        _give_up(answer, note)
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    except BaseException:
        answer.abandon()
        raise
    events = _events(answer, form, opening, include_usage=body.include_usage, note=note)
    return EventStream(events, after=lambda: _give_up(answer, note))


def _give_up(answer: Answer, note: dict[str, object]) -> None:
    """Cancel what the secure world still does for a client that went away; nothing if it is done."""
    if not answer.ended:
        note["error"] = "client_gone"
    answer.abandon()


async def _collect(answer: Answer, form: Form) -> dict[str, object]:
    deltas: list[Delta] = []
    size = 0
    async with answer:
        async for message in answer:
            if isinstance(message, Delta):
                deltas.append(message)
                size += len(message.text) + sum(1 + len(choice.top) for choice in message.choices)
                if size > MAX_ANSWER:
                    raise CallerError("The answer is too long for one piece.", hint="Stream it.")
            elif isinstance(message, Started):
                form.began(message)
            elif isinstance(message, Finished):
                return form.whole(deltas, message)
    raise unended()


async def _events(
    answer: Answer, form: Form, first: AnswerMessage | None, *, include_usage: bool, note: dict[str, object]
) -> AsyncIterator[bytes]:
    """Yield the events of a stream; an error becomes the last one, without the [DONE] of a whole answer."""
    if (opening := form.opening()) is not None:
        yield event(opening)
    message, spoke = first, time.monotonic()
    try:
        while True:
            match message:
                case Delta() if message.text or message.choices:
                    for chunk in form.chunks(message):
                        yield event(chunk)
                        spoke = time.monotonic()
                case Finished():
                    for chunk in form.closing(message):
                        yield event(chunk)
                    usage = form.usage(message)
                    note.update(model=usage["model"], **_counts(usage["usage"]))
                    if include_usage:
                        yield event(usage)
                    yield DONE
                    return
                case Started():
                    form.began(message)
                case None | Delta() | Embedded():
                    pass
            # Text that may become a call is held back, however long it gets.
            if message is None or time.monotonic() - spoke >= PING_SECONDS:
                yield PING
                spoke = time.monotonic()
            message = await _within(PING_SECONDS, answer)
    except FlexServeError as error:
        note.update(error=error.code)
        yield event(from_error(error).body())


async def _within(seconds: float, answer: Answer) -> AnswerMessage | None:
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


def _counts(usage: object) -> dict[str, object]:
    assert isinstance(usage, dict)
    return {name: usage[name] for name in ("prompt_tokens", "completion_tokens")}
