"""POST /v1/embeddings: texts to vectors."""

from __future__ import annotations

import array
import base64
import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Request
from pydantic import Field, StringConstraints, model_validator
from starlette.responses import Response

from flexserve.errors import CallerError, PeerError
from flexserve.normal.answer import Answer
from flexserve.normal.api.generation import CLIENT_CLOSED_REQUEST, unended
from flexserve.normal.api.schemas import ModelRequest, refuse_unsupported
from flexserve.normal.api.sse import ClientGoneError, while_connected
from flexserve.normal.world import World
from flexserve.protocol.bounds import MAX_TEXT, MAX_TEXTS
from flexserve.protocol.messages import Embedded, Finished, Terms

_PART_TEXTS, _PART_SIZE = 16, 16 << 10  # texts, characters
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
    note = request.state.note
    try:
        work = _embed(world, body, body.terms(request.state.key))
        vectors, tokens = await while_connected(request.receive, work)
    except ClientGoneError:
        note["error"] = "client_gone"
        return Response(status_code=CLIENT_CLOSED_REQUEST)
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


async def _embed(world: World, body: EmbeddingsRequest, terms: Terms) -> tuple[list[bytes], int]:
    """Return the vectors of all texts, and the tokens that those have.

    Many texts go to the secure world in parts: between two of them others have their turn.
    """
    vectors: list[bytes] = []
    tokens = 0
    parts = list(_parts(body.texts()))
    for number, part in enumerate(parts, 1):
        record = world.metrics.follow(body.model)
        # What the model holds may go after the last part only.
        terms_of_part = terms if number == len(parts) else msgspec.structs.replace(terms, keep_alive=None)
        try:
            answer = await world.embed(body.model, part, terms_of_part, record)
        except BaseException:
            record.lost()
            raise
        made = len(vectors)
        tokens += await _collect(answer, vectors)
        if len(vectors) - made != len(part):
            raise PeerError("The secure world made another number of vectors.", hint="See the server's log.")
        if sum(map(len, vectors)) > MAX_VECTORS:
            raise CallerError("The vectors are too many for one answer.", hint="Send fewer texts.")
    return vectors, tokens


def _parts(texts: list[str]) -> Iterator[list[str]]:
    """Yield the texts in parts that are worked off in one go."""
    part: list[str] = []
    for text in texts:
        if part and (len(part) == _PART_TEXTS or sum(map(len, part)) + len(text) > _PART_SIZE):
            yield part
            part = []
        part.append(text)
    yield part


async def _collect(answer: Answer, vectors: list[bytes]) -> int:
    """Add the vectors of an answer to `vectors`; return the tokens of its texts. Cancelled: so is it."""
    async with answer:
        async for message in answer:
            if isinstance(message, Embedded):
                vectors += message.vectors
            elif isinstance(message, Finished):
                return message.usage.prompt_tokens
    raise unended()


def _as_text(vector: bytes) -> str:
    return base64.b64encode(vector).decode()


def _as_numbers(vector: bytes) -> list[float]:
    numbers = array.array("f", vector[: len(vector) // 4 * 4])
    if sys.byteorder == "big":
        numbers.byteswap()
    return [round(number, 8) for number in numbers]
