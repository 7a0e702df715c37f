"""POST /v1/embeddings: texts to vectors."""

from __future__ import annotations

import array
import base64
import json
import sys
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field, StringConstraints, model_validator
from starlette.responses import Response

from flexserve.errors import CallerError
from flexserve.normal.answer import Answer
from flexserve.normal.api.generation import CLIENT_CLOSED_REQUEST, give_up, unended
from flexserve.normal.api.schemas import ModelRequest, refuse_unsupported
from flexserve.normal.api.sse import ClientGoneError, while_connected
from flexserve.normal.world import World
from flexserve.world.messages import MAX_TEXT, MAX_TEXTS, Embedded, Finished

MAX_VECTORS = 16 << 20  # bytes of float32 in one answer

_UNSUPPORTED: dict[str, tuple[Any, ...]] = {"dimensions": (None,)}
_Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT)]

router = APIRouter(prefix="/v1", tags=["embeddings"])


class EmbeddingsRequest(ModelRequest):
    """Body of POST /v1/embeddings. Inputs are texts; tokens are the model's own affair."""

    input: _Text | Annotated[list[_Text], Field(min_length=1, max_length=MAX_TEXTS)]
    encoding_format: Literal["float", "base64"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, body: Any) -> Any:
        refuse_unsupported(body, _UNSUPPORTED)
        return body

    def texts(self) -> list[str]:
        """Return the texts."""
        return [self.input] if isinstance(self.input, str) else self.input


@router.post("/embeddings")
async def embeddings(body: EmbeddingsRequest, request: Request) -> Response:
    """Turn each text into a vector of length 1."""
    world: World = request.app.state.world
    record = world.metrics.follow(body.model)
    try:
        answer = await world.embed(body.model, body.texts(), body.terms(request.state.key), record)
    except BaseException:
        record.lost()
        raise
    note = request.state.note
    try:
        vectors, finished = await while_connected(request.receive, _collect(answer))
    except ClientGoneError:
        give_up(answer, note)
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    tokens = finished.usage.prompt_tokens
    note.update(model=body.model, prompt_tokens=tokens)
    encode = _as_text if body.encoding_format == "base64" else _as_numbers
    whole = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": encode(vector)}
            for index, vector in enumerate(vectors)
        ],
        "model": body.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return Response(json.dumps(whole), media_type="application/json")


async def _collect(answer: Answer) -> tuple[list[bytes], Finished]:
    vectors: list[bytes] = []
    size = 0
    async with answer:
        async for message in answer:
            if isinstance(message, Embedded):
                vectors += message.vectors
                size += sum(map(len, message.vectors))
                if size > MAX_VECTORS:
                    raise CallerError("The vectors are too many for one answer.", hint="Send fewer texts.")
            elif isinstance(message, Finished):
                return vectors, message
    raise unended()


def _as_text(vector: bytes) -> str:
    return base64.b64encode(vector).decode()


def _as_numbers(vector: bytes) -> list[float]:
    numbers = array.array("f", vector[: len(vector) // 4 * 4])
    if sys.byteorder == "big":
        numbers.byteswap()
    return [round(number, 8) for number in numbers]
