"""The HTTP application: OpenAI-compatible routes over one secure world."""

from __future__ import annotations

import functools
from collections.abc import Collection

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from flexserve import __version__
from flexserve.errors import FlexServeError
from flexserve.normal.api import embeddings, generation, memory, metrics, operations
from flexserve.normal.api.document import describe
from flexserve.normal.api.envelope import LOOPBACK_NAMES, Envelope
from flexserve.normal.api.errors import from_error, from_http, from_validation
from flexserve.normal.api.keys import Keys
from flexserve.normal.world import World

_NO_KEYS = Keys()


def create_app(world: World, *, hosts: Collection[str] = LOOPBACK_NAMES, keys: Keys = _NO_KEYS) -> FastAPI:
    """Return the application that serves `world`, whose life is the caller's affair.

    `hosts`: the names a Host or Origin header may carry; see envelope.Envelope. `keys`: those that
    clients have to send one of; with none, everybody who can connect is served. There are no
    CORS headers, so no web page from elsewhere reads an answer; and no interactive documentation,
    because it would load scripts from a third party. /openapi.json describes the routes.
    """
    app = FastAPI(title="FlexServe", version=__version__, docs_url=None, redoc_url=None)
    app.state.world = world
    app.include_router(generation.router)
    app.include_router(operations.router)
    app.include_router(memory.router)
    app.include_router(embeddings.router)
    app.include_router(metrics.router)
    app.add_exception_handler(FlexServeError, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(HTTPException, _answer_http)
    document = functools.cache(lambda: describe(app, with_keys=bool(keys)))
    app.openapi = document  # type: ignore[method-assign]  # the framework's own knows no errors of ours
    app.add_middleware(Envelope, world=world, hosts=hosts, keys=keys)
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FlexServeError)
    request.state.note["error"] = error.code
    return from_error(error).response()


async def _answer_validation(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return from_validation(error).response()


async def _answer_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return from_http(error).response()
