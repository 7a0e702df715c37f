"""The HTTP application: the APIs that clients speak, over one secure world."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from types import ModuleType

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from flexserve import __version__
from flexserve.errors import FlexServeError
from flexserve.normal.api import (
    anthropic,
    attestation,
    embeddings,
    events,
    generation,
    llama_server,
    memory,
    metrics,
    model_options,
    models,
    ollama,
    operations,
    page,
    rerank,
    responses,
    sealed,
)
from flexserve.normal.api.admission import Admission
from flexserve.normal.api.document import describe
from flexserve.normal.api.envelope import Envelope
from flexserve.normal.api.errors import ErrorForms, from_error, from_http, from_validation
from flexserve.normal.models_world import ModelsWorld

# One module for each API: it translates its bodies to the internal request, and answers back.
FOR_MODELS = (generation, responses, anthropic, ollama, llama_server, embeddings, rerank, models)
# Routes are tried in this order, at some microseconds each. Sealed requests come first, since a client's own
# server searched once before; then the page: of those who ask for /, it is for browsers.
FACADES = (sealed, page, *FOR_MODELS, attestation, operations, events, model_options, memory, metrics)
_ERRORS = ErrorForms({**anthropic.ERROR_FORMS, **ollama.ERROR_FORMS, **llama_server.ERROR_FORMS})


def create_app(
    world: ModelsWorld,
    admission: Admission | None = None,
    *,
    facades: Iterable[ModuleType] = FACADES,
) -> FastAPI:
    """Return the application that serves `world`, whose life is the caller's affair, by `facades`.

    `admission`: whom it lets in; None: every program of this machine. There is no interactive documentation,
    because it would load scripts from a third party. /openapi.json describes the routes.
    """
    admission = admission or Admission()
    app = FastAPI(title="FlexServe", version=__version__, docs_url=None, redoc_url=None)
    app.state.world = world
    for facade in facades:
        app.include_router(facade.router)
    app.add_exception_handler(FlexServeError, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(HTTPException, _answer_http)
    document = functools.cache(lambda: describe(app, _ERRORS, with_keys=bool(admission.keys)))
    app.openapi = document  # type: ignore[method-assign]  # the framework's own knows no errors of ours
    app.add_middleware(Envelope, world=world, admission=admission, errors=_ERRORS)
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FlexServeError)
    request.state.note["error"] = error.code
    return _ERRORS.response(request.url.path, from_error(error))


async def _answer_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _ERRORS.response(request.url.path, from_validation(error))


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _ERRORS.response(request.url.path, from_http(error))
