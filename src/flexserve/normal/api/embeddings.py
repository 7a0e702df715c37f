"""POST /v1/embeddings: texts to vectors."""

from __future__ import annotations

import array
import base64
import math
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

import msgspec
from fastapi import APIRouter, Request
from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from flexserve.errors import CallerError, PeerError
from flexserve.normal.answer import Answer
from flexserve.normal.api.answering import json_response, model_of, unended, unless_gone
from flexserve.normal.api.envelope import quota
from flexserve.normal.api.prompts import Prompts, entries_of, plain
from flexserve.normal.api.schemas import ModelRequest
from flexserve.normal.models_world import ModelsWorld
from flexserve.protocol.answers import Embedded, Finished
from flexserve.protocol.bounds import MAX_TEXTS
from flexserve.protocol.prompts import Entry
from flexserve.protocol.requests import Terms

_PART_TEXTS, _PART_SIZE = 16, 16 << 10  # texts, characters
_NUMBER = 4  # bytes of a number of a vector
MAX_VECTORS = 16 << 20  # bytes of float32 in one answer

router = APIRouter(tags=["embeddings"])


Dimensions = Annotated[int, Field(ge=1, le=1 << 20)]


class EmbeddingsRequest(ModelRequest):
    """Body of POST /v1/embeddings. A list with a number in it is one text in tokens, another has several."""

    input: Prompts = Field(description="text, tokens, or several of them")
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Dimensions | None = Field(
        None, description="vectors have their first so many numbers, and length 1 again"
    )

    @field_validator("input", mode="before")
    @classmethod
    def _are_texts(cls, value: Any) -> Any:
        return plain(value)

    @model_validator(mode="after")
    def _is_not_too_much(self) -> Self:
        if len(self.texts()) > MAX_TEXTS:
            raise PydanticCustomError(
                "order", "These are more than {most} texts", {"most": MAX_TEXTS, "param": "input"}
            )
        return self

    def texts(self) -> list[Entry]:
        """Return the texts."""
        return entries_of(self.input)


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingsRequest, request: Request) -> Response:
    """Turn each text into a vector of length 1."""
    model = await model_of(request.app.state.world, body.model)
    made = await unless_gone(request, embed(request, model, body.texts(), body.terms(request.state.key)))
    if isinstance(made, Response):
        return made
    vectors = shortened(made.vectors, body.dimensions)
    encode = _as_text if body.encoding_format == "base64" else as_numbers
    whole = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": encode(vector)}
            for index, vector in enumerate(vectors)
        ],
        "model": model,
        "usage": {"prompt_tokens": made.tokens, "total_tokens": made.tokens},
    }
    return json_response(whole)


class Vectors(NamedTuple):
    """The vectors of all texts, as little-endian float32, and the tokens that the texts have."""

    vectors: list[bytes]
    tokens: int


async def embed(
    request: Request, model: str, texts: Sequence[Entry], terms: Terms, query: str | None = None
) -> Vectors:
    """Return the vectors of `texts`, or their ranks by `query`.

    Many texts go to the secure world in parts: between two of them others have their turn.
    """
    world: ModelsWorld = request.app.state.world
    vectors: list[bytes] = []
    tokens = 0
    parts = list(_parts(texts))
    for number, part in enumerate(parts, 1):
        record = world.metrics.follow(model, quota.get())
        # What the model holds may go after the last part only.
        terms_of_part = terms if number == len(parts) else msgspec.structs.replace(terms, keep_alive=None)
        try:
            answer = await world.embed(model, part, terms_of_part, record, query)
        except BaseException:
            record.lost()
            raise
        made = len(vectors)
        tokens += await _collect(answer, vectors)
        if len(vectors) - made != len(part):
            raise PeerError("The secure world made another number of vectors.", hint="See the server's log.")
        if sum(map(len, vectors)) > MAX_VECTORS:
            raise CallerError("The vectors are too many for one answer.", hint="Send fewer texts.")
    request.state.note.update(model=model, prompt_tokens=tokens)
    return Vectors(vectors, tokens)


def shortened(vectors: Sequence[bytes], size: int | None) -> Sequence[bytes]:
    """Return the first `size` numbers of each vector, scaled to length 1; all of them for None.

    What they tell is little, but with models that were trained for it. Raises CallerError for vectors that
    have fewer.
    """
    return vectors if size is None else [_shortened(vector, size) for vector in vectors]


def _shortened(vector: bytes, size: int) -> bytes:
    whole = len(vector) // _NUMBER
    if size > whole:
        raise CallerError(
            f"The vectors of this model have {whole} numbers, dimensions asks for {size}.",
            hint="Ask for less, or leave it out.",
            code="too_many_dimensions",
        )
    numbers = struct.unpack(f"<{size}f", vector[: size * _NUMBER])
    length = math.hypot(*numbers) or 1.0
    return struct.pack(f"<{size}f", *(number / length for number in numbers))


def _parts(texts: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Yield the texts in parts that are worked off in one go."""
    part: list[Entry] = []
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


def as_numbers(vector: bytes) -> list[float]:
    """Return a vector as JSON has it."""
    numbers = array.array("f", vector[: len(vector) // 4 * 4])
    if sys.byteorder == "big":
        numbers.byteswap()
    return [round(number, 8) for number in numbers]
