"""POST /v1/chat/completions and /v1/completions: OpenAI's API, and llama-server's alias of the first."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from flexserve.normal.api.answering import GenerationRequest, Json, counted, model_of
from flexserve.normal.api.forms import ChatForm, CompletionForm
from flexserve.normal.api.parts import Parts
from flexserve.normal.api.schemas import ChatRequest, CompletionRequest
from flexserve.normal.api.several import Wanted, respond_with
from flexserve.normal.api.tools import schemas_of
from flexserve.normal.models_world import ModelsWorld
from flexserve.protocol.prompts import ToText

router = APIRouter(tags=["generation"])


@router.post("/chat/completions", include_in_schema=False)
@router.post("/v1/chat/completions")
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    world: ModelsWorld = request.app.state.world
    model, engine = await model_of(world, body.model), world.engine
    prompt, sampling = body.prompt(), body.sampling()

    verbose: Json | None = None
    if body.verbose:
        tokens = (await world.convert(model, prompt)).tokens
        verbose = {"prompt": (await world.convert(model, ToText(tokens))).text}

    def form(with_usage: bool) -> ChatForm:
        parts = Parts(body.most_calls, schemas_of(body.tools), raw=body.reasoning_format == "none")
        said = {"with_logprobs": bool(body.logprobs), "with_usage": with_usage}
        form = ChatForm(model, **said, parts=parts, engine=engine, verbose=verbose)
        form.pace = body.pace()
        return form

    count = body.answers
    wanted = Wanted([prompt], count, count, body.include_usage)
    terms = body.terms(request.state.key)
    asked = GenerationRequest(model, prompt, sampling, terms, stream=bool(body.stream))
    return await respond_with(request, asked, wanted, form)


@router.post("/chat/completions/input_tokens", include_in_schema=False)
@router.post("/v1/chat/completions/input_tokens")
async def count_tokens(body: ChatRequest, request: Request) -> Response:
    """Count the tokens of a conversation as the model would get it. Nothing is computed."""
    return await counted(request, body.model, body.prompt())


@router.post("/v1/completions")
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue a text, or several."""
    world: ModelsWorld = request.app.state.world
    model, engine = await model_of(world, body.model), world.engine
    prompts, sampling = body.prompts(), body.sampling()

    def form(with_usage: bool) -> CompletionForm:
        said = {"with_logprobs": body.logprobs is not None, "with_usage": with_usage}
        form = CompletionForm(model, **said, engine=engine)
        form.pace = body.pace()
        return form

    wanted = Wanted(prompts, body.answers, body.tried, body.include_usage)
    terms = body.terms(request.state.key)
    asked = GenerationRequest(model, prompts[0], sampling, terms, stream=bool(body.stream))
    return await respond_with(request, asked, wanted, form)
