"""POST /v1/chat/completions and /v1/completions: OpenAI's API, and llama-server's alias of the first."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from flexserve.normal.api.answering import GenerationRequest, model_of, respond
from flexserve.normal.api.forms import ChatForm, CompletionForm
from flexserve.normal.api.parts import Parts
from flexserve.normal.api.schemas import ChatRequest, CompletionRequest
from flexserve.normal.api.tools import schemas_of
from flexserve.protocol.bounds import MAX_TOOL_CALLS

router = APIRouter(tags=["generation"])


@router.post("/chat/completions", include_in_schema=False)
@router.post("/v1/chat/completions")
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    model = await model_of(request.app.state.world, body.model)
    prompt = body.prompt()
    most_calls = 0 if prompt.tools is None else 1 if body.parallel_tool_calls is False else MAX_TOOL_CALLS
    parts = Parts(most_calls, schemas_of(body.tools), raw=body.reasoning_format == "none")
    form = ChatForm(model, with_logprobs=bool(body.logprobs), with_usage=body.include_usage, parts=parts)
    terms = body.terms(request.state.key)
    asked = GenerationRequest(model, prompt, body.sampling(), terms, stream=bool(body.stream))
    return await respond(request, asked, form)


@router.post("/v1/completions")
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue a text."""
    model = await model_of(request.app.state.world, body.model)
    form = CompletionForm(model, with_logprobs=body.logprobs is not None, with_usage=body.include_usage)
    terms = body.terms(request.state.key)
    asked = GenerationRequest(model, body.text(), body.sampling(), terms, stream=bool(body.stream))
    return await respond(request, asked, form)
