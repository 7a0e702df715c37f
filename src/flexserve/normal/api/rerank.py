"""POST /v1/rerank: how well texts answer a query, by a model that was trained to say so."""

from __future__ import annotations

import struct
from typing import Annotated, Any, Self

from fastapi import APIRouter, Request
from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from flexserve.errors import PeerError
from flexserve.normal.api.answering import Json, json_response, model_of, unless_gone
from flexserve.normal.api.embeddings import embed
from flexserve.normal.api.prompts import Text
from flexserve.normal.api.schemas import ModelRequest
from flexserve.protocol.bounds import MAX_TEXTS

router = APIRouter(tags=["llama-server"])

_Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]


class RerankRequest(ModelRequest):
    """Body of POST /v1/rerank: Jina's and Cohere's form with `documents`, TEI's with `texts`."""

    query: Text
    documents: _Texts | None = None
    texts: _Texts | None = None
    top_n: Annotated[int, Field(ge=1)] | None = Field(None, description="the best n only")
    return_documents: bool | None = Field(None, description="the documents are said, too")
    return_text: bool | None = Field(None, description="the texts are said, too")

    @field_validator("documents", mode="before")
    @classmethod
    def _are_texts(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [one.get("text") if isinstance(one, dict) else one for one in value]

    @model_validator(mode="after")
    def _has_texts(self) -> Self:
        if (self.documents is None) == (self.texts is None):
            raise PydanticCustomError("missing", "Give the texts once, as documents", {"param": "documents"})
        return self

    def ranked(self) -> list[str]:
        """Return the texts."""
        return self.texts or self.documents or []


@router.post("/v1/rerank")
@router.post("/rerank", include_in_schema=False)
@router.post("/reranking", include_in_schema=False)
@router.post("/v1/reranking", include_in_schema=False)
async def rerank(body: RerankRequest, request: Request) -> Response:
    """Rank texts by how well they answer a query, the best first."""
    model = await model_of(request.app.state.world, body.model)
    texts = body.ranked()
    work = embed(request, model, texts, body.terms(request.state.key), body.query)
    made = await unless_gone(request, work)
    if isinstance(made, Response):
        return made
    scores = [_score(vector) for vector in made.vectors]
    order = sorted(range(len(texts)), key=lambda at: -scores[at])[: body.top_n]
    if body.texts is not None:
        return json_response([_tei(body, at, scores[at]) for at in order])
    whole = {
        "model": model,
        "object": "list",
        "usage": {"prompt_tokens": made.tokens, "total_tokens": made.tokens},
        "results": [_result(body, at, scores[at]) for at in order],
    }
    return json_response(whole)


def _score(vector: bytes) -> float:
    if len(vector) != struct.calcsize("<f"):
        raise PeerError("The secure world sent no rank.", hint="See the server's log.")
    return float(struct.unpack("<f", vector)[0])


def _tei(body: RerankRequest, at: int, score: float) -> Json:
    text = {"text": body.ranked()[at]} if body.return_text else {}
    return {"index": at, "score": score, **text}


def _result(body: RerankRequest, at: int, score: float) -> Json:
    text = {"document": {"text": body.ranked()[at]}} if body.return_documents else {}
    return {"index": at, "relevance_score": score, **text}
