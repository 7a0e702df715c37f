"""llama-server's own API: /completion, /tokenize, /props … Its routes without /v1 are aliases elsewhere."""

from __future__ import annotations

from typing import Annotated, Any, Self

import msgspec
from fastapi import APIRouter, Request
from pydantic import Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from flexserve.errors import CallerError
from flexserve.normal.api.answering import (
    GenerationRequest,
    Json,
    json_response,
    model_of,
    respond,
    status_of,
    unless_gone,
)
from flexserve.normal.api.cards import description_of
from flexserve.normal.api.embeddings import as_numbers, embed
from flexserve.normal.api.llama_server_form import NativeForm, error_body
from flexserve.normal.api.media import refusal
from flexserve.normal.api.schemas import Body, ChatRequest, ModelRequest, SamplingRequest, Text
from flexserve.normal.models_world import ModelsWorld
from flexserve.protocol.bounds import MAX_MESSAGES, MAX_TEXTS, MAX_TOKENS, MAX_TOP_LOGPROBS
from flexserve.protocol.messages import InfillPrompt, Snippet, TextPrompt, TokenPrompt, ToText, ToTokens
from flexserve.protocol.sampling import Sampling

router = APIRouter(tags=["llama-server"])
_PATHS = ("completion", "completions", "infill", "tokenize", "detokenize", "apply-template", "props", "slots",
          "embedding", "embeddings", "rerank", "reranking", "v1/rerank", "v1/reranking")  # fmt: skip
ERROR_FORMS = {f"/{path}": error_body for path in _PATHS}

_TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]


class NativeRequest(SamplingRequest):
    """What /completion and /infill have in common."""

    n_probs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        None, description="log-probabilities of the likeliest n tokens"
    )

    return_tokens: bool | None = Field(None, description="the numbers of the answer's tokens are said")

    def sampling(self, **more: Any) -> Sampling:
        """Return how to sample."""
        logprobs = self.n_probs or (0 if self.return_tokens else None)
        return super().sampling(logprobs=logprobs, **more)


class NativeCompletion(NativeRequest):
    """Body of POST /completion."""

    prompt: Text | Annotated[list[_TokenId | Text], Field(min_length=1, max_length=MAX_TOKENS)]

    @field_validator("prompt", mode="before")
    @classmethod
    def _is_one(cls, value: Any) -> Any:
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict) and part.get("multimodal_data"):
                raise refusal("Images and sounds", "prompt")
        if not isinstance(value, list):
            return value
        if len(value) == 1 and isinstance(value[0], str | list):
            return value[0]
        if any(isinstance(part, list) for part in value) or all(isinstance(part, str) for part in value):
            raise PydanticCustomError("unsupported", "Send one prompt per request", {"param": "prompt"})
        return value

    def text(self) -> TextPrompt | TokenPrompt:
        """Return the text to continue, or the tokens, with texts among them."""
        return TextPrompt(self.prompt) if isinstance(self.prompt, str) else TokenPrompt(self.prompt)


class ProjectFile(Body):
    """Another text of the project that a gap belongs to."""

    filename: Annotated[str, StringConstraints(max_length=2048)] = ""
    text: Text


class InfillRequest(NativeRequest):
    """Body of POST /infill: a gap in a text. `prompt` is how the filling begins."""

    input_prefix: Text = ""
    input_suffix: Text = ""
    input_extra: Annotated[list[ProjectFile], Field(max_length=MAX_MESSAGES)] | None = None
    prompt: Text = ""

    def gap(self) -> InfillPrompt:
        """Return the gap."""
        snippets = [Snippet(file.filename, file.text) for file in self.input_extra or []]
        return InfillPrompt(self.input_prefix, self.input_suffix, self.prompt, snippets)


class TokenizeRequest(ModelRequest):
    """Body of POST /tokenize."""

    content: Text
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeRequest(ModelRequest):
    """Body of POST /detokenize."""

    tokens: Annotated[list[_TokenId], Field(max_length=MAX_TOKENS)]


class NativeEmbeddings(ModelRequest):
    """Body of POST /embedding: `content`, or `input` as at OpenAI."""

    content: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)] | None = None
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)] | None = None
    embd_normalize: int | None = None

    @field_validator("embd_normalize")
    @classmethod
    def _one_length(cls, value: int | None) -> int | None:
        if value not in (None, 2):
            raise PydanticCustomError(
                "unsupported", "Vectors have length 1 here", {"param": "embd_normalize"}
            )
        return value

    @model_validator(mode="after")
    def _has_texts(self) -> Self:
        if (self.content is None) == (self.input is None):
            raise PydanticCustomError("missing", "Give the texts once, as content", {"param": "content"})
        return self

    def texts(self) -> list[str]:
        """Return the texts."""
        given = self.content if self.content is not None else self.input
        return [given] if isinstance(given, str) else given or []


@router.post("/completion")
@router.post("/completions", include_in_schema=False)
async def completion(body: NativeCompletion, request: Request) -> Response:
    """Continue a text, in llama-server's form."""
    shown = body.prompt if isinstance(body.prompt, str) else ""
    return await _answered(request, body, body.text(), shown)


@router.post("/infill")
async def infill(body: InfillRequest, request: Request) -> Response:
    """Fill a gap in a text, with a model that was trained to."""
    return await _answered(request, body, body.gap(), body.prompt)


async def _answered(
    request: Request, body: NativeRequest, prompt: TextPrompt | TokenPrompt | InfillPrompt, shown: str
) -> Response:
    model = await model_of(request.app.state.world, body.model)
    sampling = body.sampling()
    settings = _settings(sampling, stream=bool(body.stream))
    form = NativeForm(model, shown, settings, sampling.stop, with_tokens=bool(body.return_tokens))
    terms = body.terms(request.state.key)
    asked = GenerationRequest(model, prompt, sampling, terms, stream=bool(body.stream))
    return await respond(request, asked, form)


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """Turn a text into tokens. Nothing is computed."""
    source = ToTokens(body.content, body.add_special, body.parse_special, body.with_pieces)
    converted = await _converted(request, body, source)
    if isinstance(converted, Response):
        return converted
    tokens: list[Any] = converted.tokens
    if body.with_pieces:
        pairs = zip(converted.tokens, converted.pieces, strict=True)
        tokens = [{"id": token, "piece": _piece(piece)} for token, piece in pairs]
    return json_response({"tokens": tokens})


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """Turn tokens into their text. Nothing is computed."""
    converted = await _converted(request, body, ToText(body.tokens))
    return converted if isinstance(converted, Response) else json_response({"content": converted.text})


@router.post("/apply-template")
async def apply_template(body: ChatRequest, request: Request) -> Response:
    """Return the text that the model's template makes of a conversation. Nothing is computed."""
    converted = await _converted(request, body, body.prompt())
    return converted if isinstance(converted, Response) else json_response({"prompt": converted.text})


@router.post("/embedding")
@router.post("/embeddings", include_in_schema=False)
async def embeddings(body: NativeEmbeddings, request: Request) -> Response:
    """Turn texts into vectors, in llama-server's form."""
    model = await model_of(request.app.state.world, body.model)
    made = await unless_gone(request, embed(request, model, body.texts(), body.terms(request.state.key)))
    if isinstance(made, Response):
        return made
    return json_response(
        [{"index": at, "embedding": [as_numbers(vector)]} for at, vector in enumerate(made.vectors)]
    )


@router.post("/v1/rerank")
@router.post("/rerank", include_in_schema=False)
@router.post("/reranking", include_in_schema=False)
@router.post("/v1/reranking", include_in_schema=False)
async def rerank() -> Response:
    """Refuse: no model here ranks texts."""
    raise CallerError(
        "This server does not rank texts.",
        hint="Ask POST /v1/embeddings for vectors, and compare them.",
        code="rerank_unsupported",
    )


@router.get("/props")
async def props(request: Request, model: str | None = None) -> Response:
    """Say how a model is served. Its template is sealed with it: POST /apply-template uses it."""
    world: ModelsWorld = request.app.state.world
    status = await status_of(world, model)
    about = description_of(status)
    defaults = {"id": 0, "n_ctx": about.context, "params": _settings(Sampling(), stream=False)}
    answer = {
        "default_generation_settings": defaults,
        "total_slots": about.sequences,
        "model_alias": status.name,
        "model_path": f"{status.name}.flex",
        "kv_type": about.kv,
        "modalities": {"vision": False, "audio": False},
        "chat_template": "",
        "build_info": world.engine,
        "is_sleeping": not status.resident,
    }
    return json_response(answer)


@router.get("/slots")
async def slots(request: Request, model: str | None = None) -> Response:
    """Say how many requests a model can compute at once, and how many it does."""
    world: ModelsWorld = request.app.state.world
    status = await status_of(world, model)
    about, busy = description_of(status), world.metrics.running[status.name]
    return json_response(
        [
            {"id": number, "n_ctx": about.context, "speculative": False, "is_processing": number < busy}
            for number in range(about.sequences)
        ]
    )


async def _converted(request: Request, body: ModelRequest, source: Any) -> Any:
    world: ModelsWorld = request.app.state.world
    model = await model_of(world, body.model)
    return await unless_gone(request, world.convert(model, source))


def _settings(sampling: Sampling, *, stream: bool) -> Json:
    """Return how an answer is chosen, in llama-server's names."""
    given = msgspec.to_builtins(sampling)
    limit = -1 if sampling.max_tokens is None else sampling.max_tokens
    seed = (1 << 32) - 1 if sampling.seed is None else sampling.seed
    return {**given, "seed": seed, "n_predict": limit, "max_tokens": limit, "stream": stream}


def _piece(data: bytes) -> str | list[int]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)
