"""GET /v1/models: the models of the store, in the form of OpenAI's and Anthropic's APIs."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from flexserve.normal.api.answering import status_of
from flexserve.normal.api.cards import card, card_list
from flexserve.normal.api.schemas import ModelName

router = APIRouter(tags=["models"])


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """List the models of the store, in the form of OpenAI's and Anthropic's APIs."""
    return JSONResponse(card_list(await request.app.state.world.models()))


@router.get("/v1/models/{name:path}")
async def show_model(name: ModelName, request: Request) -> Response:
    """Show one model of the store, in the form of OpenAI's and Anthropic's APIs."""
    return JSONResponse(card(await status_of(request.app.state.world, name)))
