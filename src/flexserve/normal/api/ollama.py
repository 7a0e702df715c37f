"""Ollama's API: /api/…

Models come into the store and leave it by `flexserve add` and `rm`, by whoever has the device: requests
may look at them and use them. What asks for more is refused, with the command that does it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.responses import PlainTextResponse, Response

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
from flexserve.normal.api.cards import capabilities_of, description_of, moment
from flexserve.normal.api.embeddings import as_numbers, embed, shortened
from flexserve.normal.api.ollama_bodies import (
    ChatBody,
    CopyBody,
    EmbedBody,
    GenerateBody,
    NameBody,
    OldEmbedBody,
    OllamaRequest,
)
from flexserve.normal.api.ollama_form import ChatObjects, GeneratedObjects, error_body
from flexserve.normal.api.parts import Parts
from flexserve.normal.api.sse import line
from flexserve.normal.api.tools import schemas_of
from flexserve.normal.models_world import ModelsWorld
from flexserve.protocol.bounds import MAX_TOOL_CALLS
from flexserve.protocol.prompts import AskTemplate
from flexserve.protocol.statuses import ModelStatus

API_VERSION = "0.12.0"  # of ollama, whose routes these are like: clients ask before they use newer ones

ERROR_FORMS = {"/api": error_body}


class _JsonRoute(APIRoute):
    """A route whose body is JSON whatever its Content-Type says, as `curl -d` sends it to ollama.

    Web pages from elsewhere, who could send such a body unasked, are known by their origin.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            headers = [pair for pair in request.scope["headers"] if pair[0] != b"content-type"]
            headers.append((b"content-type", b"application/json"))
            return await handle(Request({**request.scope, "headers": headers}, request.receive))

        return handler


router = APIRouter(tags=["ollama"], route_class=_JsonRoute)


@router.get("/", include_in_schema=False)
@router.head("/", include_in_schema=False)
async def root() -> Response:
    """Say that somebody is here, which ollama's command line asks first."""
    return PlainTextResponse("FlexServe is running")


@router.get("/api/version")
async def version() -> Response:
    """Say which version of ollama's API this is like."""
    return json_response({"version": API_VERSION})


@router.get("/api/tags")
async def tags(request: Request) -> Response:
    """List the models of the store, in ollama's form."""
    world: ModelsWorld = request.app.state.world
    return json_response({"models": [_listed(model) for model in await world.models()]})


@router.get("/api/ps")
async def running(request: Request) -> Response:
    """List the models that have memory, in ollama's form. Nothing is kept for a time that is known ahead."""
    world: ModelsWorld = request.app.state.world
    present = [model for model in await world.models() if model.resident]
    return json_response({"models": [_loaded(model) for model in present]})


@router.post("/api/show")
async def show(body: NameBody, request: Request) -> Response:
    """Show one model, and its own chat template. The rest of its file is sealed."""
    world: ModelsWorld = request.app.state.world
    model = await status_of(world, body.model)
    about = description_of(model)
    facts: Json = {
        "general.architecture": about.architecture,
        "general.parameter_count": about.parameters,
        f"{about.architecture}.context_length": about.trained_context,
        "flexserve.context_length": about.context,
        "flexserve.kv_type": about.kv,
        "flexserve.context_shift": about.shift,
        "flexserve.draft": about.draft,
    }
    shown = {
        "modelfile": "",
        "parameters": "",
        "template": (await world.convert(model.name, AskTemplate())).text,
        "details": _details(model),
        "model_info": facts,
        "capabilities": capabilities_of(model),
        "modified_at": moment(about.created),
    }
    return json_response(shown)


@router.post("/api/chat")
async def chat(body: ChatBody, request: Request) -> Response:
    """Answer a conversation, in ollama's form."""
    model = await _model(request, body)
    if not body.messages:
        content = {"message": {"role": "assistant", "content": ""}}
        return await _kept(request, body, model, content)
    parts = Parts(MAX_TOOL_CALLS if body.tools else 0, schemas_of(body.tools))
    form = ChatObjects(model, parts, with_logprobs=bool(body.logprobs))
    terms = body.terms(request.state.key)
    asked = GenerationRequest(model, body.prompt(), body.sampling(), terms, stream=body.streams)
    return await respond(request, asked, form)


@router.post("/api/generate")
async def generate(body: GenerateBody, request: Request) -> Response:
    """Answer one question, continue a raw text, or fill a gap, in ollama's form."""
    model = await _model(request, body)
    if not (body.prompt or body.suffix):
        return await _kept(request, body, model, {"response": ""})
    form = GeneratedObjects(model, Parts(0), with_logprobs=bool(body.logprobs))
    terms = body.terms(request.state.key)
    asked = GenerationRequest(model, body.request_prompt(), body.sampling(), terms, stream=body.streams)
    return await respond(request, asked, form)


@router.post("/api/embed")
async def embed_texts(body: EmbedBody, request: Request) -> Response:
    """Turn texts into vectors, in ollama's form."""
    began = time.monotonic()
    model = await _model(request, body)
    texts = [body.input] if isinstance(body.input, str) else body.input
    work = embed(request, model, texts, body.terms(request.state.key))
    made = await unless_gone(request, work)
    if isinstance(made, Response):
        return made
    answer = {
        "model": model,
        "embeddings": [as_numbers(vector) for vector in shortened(made.vectors, body.dimensions or None)],
        "total_duration": int((time.monotonic() - began) * 1e9),
        "load_duration": 0,
        "prompt_eval_count": made.tokens,
    }
    return json_response(answer)


@router.post("/api/embeddings")
async def embed_text(body: OldEmbedBody, request: Request) -> Response:
    """Turn one text into a vector, as older clients ask for it."""
    model = await _model(request, body)
    made = await unless_gone(request, embed(request, model, [body.prompt], body.terms(request.state.key)))
    return made if isinstance(made, Response) else json_response({"embedding": as_numbers(made.vectors[0])})


@router.post("/api/pull")
async def pull(body: NameBody, request: Request) -> Response:
    """Say that a model is here. One that is not is refused: this server downloads nothing."""
    names = [model.name for model in await request.app.state.world.models()]
    if body.model not in names:
        raise CallerError(
            "There is no such model, and this server downloads none.",
            hint="Whoever has the device does it: flexserve pull ollama:NAME, or add FILE --name NAME.",
            code="not_by_request",
        )
    done = {"status": "success"}
    if body.stream is False:
        return json_response(done)
    return Response(line(done), media_type="application/x-ndjson")


@router.delete("/api/delete")
async def delete(_body: NameBody) -> Response:
    """Refuse: others use the models, too."""
    raise _refused("Models are not removed by request: others use them, too.", "flexserve rm NAME")


@router.post("/api/copy")
async def copy(_body: CopyBody) -> Response:
    """Refuse: a sealed model is bound to its name."""
    raise _refused("A sealed model is bound to its name.", "flexserve add FILE --name OTHER")


@router.post("/api/create")
@router.post("/api/push")
async def change() -> Response:
    """Refuse: models are made and published elsewhere."""
    raise _refused("This server makes and publishes no models.", "flexserve add FILE --name NAME")


def _refused(why: str, command: str) -> CallerError:
    return CallerError(why, hint=f"Whoever has the device does it: {command}.", code="not_by_request")


async def _model(request: Request, body: OllamaRequest) -> str:
    """Return the model of a request. Raises CallerError for a context that is not served in this way."""
    world: ModelsWorld = request.app.state.world
    wanted = body.options.num_ctx if body.options is not None else None
    if wanted is None and not body.shift:
        return await model_of(world, body.model)
    model = await status_of(world, body.model)
    size = description_of(model).context
    if body.shift and not description_of(model).shift:
        raise CallerError(
            "The context of this model is not shifted when it is full.",
            hint=f"Leave `shift` out, or have it shifted: flexserve set {model.name} shift on.",
            code="shift_off",
        )
    if wanted is not None and size and wanted > size:
        raise CallerError(
            f"The context has {size} tokens here, num_ctx asks for {wanted}.",
            hint=f"Ask for less, or give it more: flexserve set {model.name} context {wanted}.",
            code="context_length_exceeded",
        )
    return model.name


async def _kept(request: Request, body: OllamaRequest, model: str, content: Json) -> Response:
    """Bring a model in, or let it go with `keep_alive` 0, without asking it anything."""
    goes = body.keep_alive == 0
    warmed = await unless_gone(request, request.app.state.world.warm(model, body.keep_alive))
    if isinstance(warmed, Response):
        return warmed
    reason = {"done": True, "done_reason": "unload" if goes else "load"}
    answer = {"model": model, "created_at": moment(time.time()), **content, **reason}
    if body.streams:
        return Response(line(answer), media_type="application/x-ndjson")
    return json_response(answer)


def _details(model: ModelStatus) -> Json:
    about = description_of(model)
    return {
        "parent_model": "",
        "format": "gguf",
        "family": about.architecture,
        "families": [about.architecture],
        "parameter_size": _count(about.parameters),
        "quantization_level": about.quantization,
    }


def _listed(model: ModelStatus) -> Json:
    about = description_of(model)
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": moment(about.created),
        "size": about.size,
        "digest": about.digest,
        "details": _details(model),
    }


def _loaded(model: ModelStatus) -> Json:
    about = description_of(model)
    listed = _listed(model)
    del listed["modified_at"]
    return {
        **listed,
        "size": model.resident + model.kv + model.scratch,
        "size_vram": 0,
        "expires_at": "9999-12-31T23:59:59Z",
        "context_length": about.context,
        "kv_type": about.kv,
    }


def _count(parameters: int) -> str:
    """Return a number of parameters as ollama writes it."""
    for factor, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if parameters >= factor:
            return f"{parameters / factor:.4g}{unit}"
    return str(parameters)
