"""What `flexserve connect` adds to the APIs: whom it verified, the receipts of answers, its own health."""

from __future__ import annotations

import dataclasses

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from flexserve.errors import CallerError
from flexserve.normal.api.cards import card_list
from flexserve.normal.receipts import Receipts
from flexserve.normal.remote_world import RemoteWorld

router = APIRouter(tags=["verification"])


@router.get("/v1/health", include_in_schema=False)
@router.get("/health")
async def health(request: Request) -> Response:
    """Say whether requests can be served now: 200, or the reason why not."""
    trust = await _remote(request).check()
    return JSONResponse(
        {"status": "ok", "protection": dataclasses.asdict(trust.protection), "engine": trust.engine}
    )


@router.get("/models")
async def list_models(request: Request) -> Response:
    """List the models, as llama-server has them at this path."""
    return JSONResponse(card_list(await _remote(request).models()))


@router.get("/verification")
async def verification(request: Request) -> Response:
    """Show what was verified of the secure world that answers."""
    return JSONResponse((await _remote(request).trust()).shown)


@router.get("/receipts/{name}")
async def receipts(name: str, request: Request) -> Response:
    """Return the receipts of a request by its X-Request-Id: one for each answer that it had."""
    kept: Receipts = request.app.state.receipts
    found = kept.of(name)
    if not found:
        raise CallerError(
            "There is no receipt of that request.",
            hint="A receipt has the X-Request-Id of an answer that ended well; the last thousand are kept.",
            code="receipt_not_found",
        )
    return JSONResponse({"object": "list", "data": found})


def _remote(request: Request) -> RemoteWorld:
    world = request.app.state.world
    assert isinstance(world, RemoteWorld)
    return world
