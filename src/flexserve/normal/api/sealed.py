"""POST /v1/sealed: requests that this server passes on and cannot read (docs/private.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from starlette.responses import Response

from flexserve.errors import FlexServeError
from flexserve.normal.answer import Answer, AnswerMessage
from flexserve.normal.api.answering import CLIENT_CLOSED_REQUEST
from flexserve.normal.api.envelope import quota
from flexserve.normal.api.sse import ClientGoneError, EventStream, while_connected
from flexserve.protocol.sealed_answer import TOKENS_OF_A_FRAME
from flexserve.protocol.sealed_messages import SealedPart
from flexserve.protocol.sealed_request import header_of

MEDIA_TYPE = "application/octet-stream"
BYTES_OF_A_TOKEN = 4  # of a text, as models have it on average

router = APIRouter(tags=["sealed"])


@router.post("/v1/sealed")
async def sealed(request: Request) -> Response:
    """Pass a sealed request to the secure world, and its sealed answer back, frame by frame.

    All bodies that the secure world cannot open are answered alike.
    """
    body = await request.body()
    _charge(len(body) // BYTES_OF_A_TOKEN)
    answer = await request.app.state.world.sealed(header_of(body).model, body)
    note = request.state.note
    try:
        first = await while_connected(request.receive, anext(answer))
    except ClientGoneError:
        answer.abandon()
        note["error"] = "client_gone"
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    except BaseException:
        answer.abandon()
        raise

    def after() -> None:
        if not answer.ended:
            note["error"] = "client_gone"
        answer.abandon()

    return EventStream(_parts(first, answer, note), after=after, media_type=MEDIA_TYPE)


async def _parts(first: AnswerMessage, answer: Answer, note: dict[str, object]) -> AsyncIterator[bytes]:
    """Yield a sealed answer as it comes. One that breaks off is cut off: its reader misses the last frame."""
    assert isinstance(first, SealedPart)
    yield first.data
    try:
        async for part in answer:
            assert isinstance(part, SealedPart)
            _charge(TOKENS_OF_A_FRAME)
            yield part.data
    except FlexServeError as error:
        note.update(error=error.code)


def _charge(tokens: int) -> None:
    """Charge the key that asks with what may be in what it sends or gets: nobody here can count it."""
    bound = quota.get()
    if bound is not None:
        bound.charge(tokens)
