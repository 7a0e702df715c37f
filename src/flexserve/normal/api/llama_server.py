"""llama-server's own API: /completion, /tokenize, /props … Its routes without /v1 are aliases elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Self

import msgspec
from fastapi import APIRouter, Request
from pydantic import AliasChoices, Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from flexserve.normal.api.answering import (
    GenerationRequest,
    Json,
    json_response,
    model_of,
    status_of,
    unless_gone,
)
from flexserve.normal.api.cards import description_of
from flexserve.normal.api.embeddings import as_numbers, embed
from flexserve.normal.api.llama_server_form import NativeForm, Told, error_body
from flexserve.normal.api.prompts import Prompts, Text, entries_of, plain, prompts_of
from flexserve.normal.api.schemas import (
    MAX_ANSWERS,
    Body,
    ChatRequest,
    ModelName,
    ModelRequest,
    SamplingRequest,
)
from flexserve.normal.api.several import Wanted, respond_with
from flexserve.normal.models_world import ModelsWorld
from flexserve.protocol.bounds import MAX_MESSAGES, MAX_TOKENS, MAX_TOP_LOGPROBS
from flexserve.protocol.prompts import (
    AskTemplate,
    Entry,
    InfillPrompt,
    Prompt,
    Snippet,
    TextPrompt,
    ToText,
    ToTokens,
)
from flexserve.protocol.sampling import Sampling

router = APIRouter(tags=["llama-server"])
_PATHS = (
    *("completion", "completions", "chat/completions", "infill", "tokenize", "detokenize", "tokenizer_info"),
    *("apply-template", "props", "slots", "embedding", "embeddings", "rerank", "reranking"),
    *("v1/rerank", "v1/reranking"),
)
ERROR_FORMS = {f"/{path}": error_body for path in _PATHS}

_TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]


_Path = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class NativeRequest(SamplingRequest):
    """What /completion and /infill have in common."""

    n_probs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        None, description="log-probabilities of the likeliest n tokens"
    )
    post_sampling_probs: bool | None = Field(
        None, description="they are probabilities, of the tokens that the samplers left"
    )
    return_tokens: bool | None = Field(None, description="the numbers of the answer's tokens are said")
    response_fields: Annotated[list[_Path], Field(max_length=64)] | None = Field(
        None, description="only these parts of the answer are said, as `content` and `timings/prompt_n`"
    )

    def sampling(self, **more: Any) -> Sampling:
        """Return how to sample."""
        drawn = bool(self.n_probs and self.post_sampling_probs)
        return super().sampling(logprobs=self.n_probs or None, after_samplers=drawn, **more)

    def told(self, prompts: list[str]) -> Told:
        """Return what the answer tells of the request, and beside its text."""
        sampling = self.sampling()
        settings = _settings(sampling, stream=bool(self.stream))
        return Told(
            *(prompts, settings, sampling.stop, self.response_fields or ()),
            tokens=bool(self.return_tokens),
            probabilities=bool(self.n_probs),
            drawn=sampling.after_samplers,
        )


class NativeCompletion(NativeRequest):
    """Body of POST /completion. A list with a number in it is one prompt, another list has several."""

    prompt: Prompts

    @field_validator("prompt", mode="before")
    @classmethod
    def _are_texts(cls, value: Any) -> Any:
        return plain(value)

    @model_validator(mode="after")
    def _is_not_too_much(self) -> Self:
        if len(self.prompts()) * self.answers > MAX_ANSWERS:
            raise PydanticCustomError("order", "These are more than {most} answers", {"most": MAX_ANSWERS})
        return self

    def prompts(self) -> list[Prompt]:
        """Return the texts to continue, or the tokens."""
        return prompts_of(self.prompt)


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
    """Body of POST /tokenize: llama-server's, or vLLM's `prompt` and `add_special_tokens`."""

    content: Text = Field(validation_alias=AliasChoices("content", "prompt"))
    add_special: bool = Field(False, validation_alias=AliasChoices("add_special", "add_special_tokens"))
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeRequest(ModelRequest):
    """Body of POST /detokenize."""

    tokens: Annotated[list[_TokenId], Field(max_length=MAX_TOKENS)]


class NativeEmbeddings(ModelRequest):
    """Body of POST /embedding: `content`, or `input` as at OpenAI."""

    content: Prompts | None = None
    input: Prompts | None = None
    embd_normalize: int | None = None

    @field_validator("embd_normalize")
    @classmethod
    def _one_length(cls, value: int | None) -> int | None:
        if value not in (None, 2):
            raise PydanticCustomError(
                "unsupported", "Vectors have length 1 here", {"param": "embd_normalize"}
            )
        return value

    @field_validator("content", "input", mode="before")
    @classmethod
    def _are_texts(cls, value: Any) -> Any:
        return plain(value)

    @model_validator(mode="after")
    def _has_texts(self) -> Self:
        if (self.content is None) == (self.input is None):
            raise PydanticCustomError("missing", "Give the texts once, as content", {"param": "content"})
        return self

    def texts(self) -> list[Entry]:
        """Return the texts."""
        given = self.content if self.content is not None else self.input
        return entries_of(given or "")


@router.post("/completion")
@router.post("/completions", include_in_schema=False)
async def completion(body: NativeCompletion, request: Request) -> Response:
    """Continue a text, or several, in llama-server's form."""
    return await _answered(request, body, body.prompts())


@router.post("/infill")
async def infill(body: InfillRequest, request: Request) -> Response:
    """Fill a gap in a text, with a model that was trained to."""
    return await _answered(request, body, [body.gap()])


async def _answered(request: Request, body: NativeRequest, prompts: Sequence[Prompt]) -> Response:
    model = await model_of(request.app.state.world, body.model)
    count = body.answers
    told = body.told([_shown(prompt) for prompt in prompts for _ in range(count)])
    terms = body.terms(request.state.key)
    asked = GenerationRequest(model, prompts[0], body.sampling(), terms, stream=bool(body.stream))

    def form(_with_usage: bool) -> NativeForm:
        form = NativeForm(model, told)
        form.pace = body.pace()
        return form

    return await respond_with(request, asked, Wanted(prompts, count, count), form)


def _shown(prompt: Prompt) -> str:
    """Return what an answer says of its prompt: the text."""
    match prompt:
        case TextPrompt():
            return prompt.text
        case InfillPrompt():
            return prompt.start
        case _:
            return ""


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
    """Turn tokens into their text: `content`, and vLLM's name of it. Nothing is computed."""
    converted = await _converted(request, body, ToText(body.tokens))
    if isinstance(converted, Response):
        return converted
    return json_response({"content": converted.text, "prompt": converted.text})


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request, model: ModelName | None = None) -> Response:
    """Say what begins and ends a text, and the template, as vLLM does: lm-eval asks for it."""
    world: ModelsWorld = request.app.state.world
    name = await model_of(world, model)
    converted = await unless_gone(request, world.convert(name, AskTemplate()))
    if isinstance(converted, Response):
        return converted
    first, last = (piece.decode(errors="replace") or None for piece in converted.pieces[:2])
    return json_response({"bos_token": first, "eos_token": last, "chat_template": converted.text or None})


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


@router.get("/props")
async def props(request: Request, model: ModelName | None = None) -> Response:
    """Say how a model is served, and its own chat template."""
    world: ModelsWorld = request.app.state.world
    status = await status_of(world, model)
    about = description_of(status)
    defaults = {"id": 0, "n_ctx": about.context, "params": _settings(Sampling(), stream=False)}
    answer = {
        "default_generation_settings": defaults,
        "total_slots": about.sequences,
        "model_alias": status.name,
        "model_path": f"{status.name}.gguf",  # as clients know it: it is sealed, and has no path for them
        "kv_type": about.kv,
        "modalities": {"vision": False, "audio": False},
        "chat_template": (await world.convert(status.name, AskTemplate())).text,
        "build_info": world.engine,
        "is_sleeping": not status.resident,
    }
    return json_response(answer)


@router.get("/slots")
async def slots(request: Request, model: ModelName | None = None) -> Response:
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
    for ours in ("schema", "logprobs", "echo", "after_samplers"):
        del given[ours]
    limit = -1 if sampling.max_tokens is None else sampling.max_tokens
    seed = (1 << 32) - 1 if sampling.seed is None else sampling.seed
    return {
        **given,
        "seed": seed,
        "n_predict": limit,
        "max_tokens": limit,
        "grammar": sampling.grammar or "",
        "adaptive_target": -1.0,  # less than 0: not applied
        "adaptive_decay": 0.9,
        "n_keep": 0,
        "n_discard": 0,
        "n_probs": sampling.logprobs or 0,
        "post_sampling_probs": sampling.after_samplers,
        "stream": stream,
        "lora": [],
    }


def _piece(data: bytes) -> str | list[int]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)
