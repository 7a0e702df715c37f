"""What /openapi.json says beyond what the framework finds out: errors, keys, forms of answers."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from flexserve.normal.api.errors import ErrorForms, HttpError

Json = dict[str, Any]

_WHY = {
    "400": "The request is wrong in itself.",
    "401": "The server wants a key.",
    "403": "Called by a name or from a page that is not allowed, or with a key that may not.",
    "404": "There is no such thing.",
    "405": "Not with this method.",
    "408": "The body did not arrive.",
    "413": "The body is too large.",
    "429": "The queue is full, or the key asked for as much as it may.",
    "500": "The stored data is bad, or the server failed.",
    "503": "The server cannot serve now.",
}
_COUNT = {"type": "integer", "minimum": 0}
_USAGE = {
    "type": "object",
    "required": ["prompt_tokens", "total_tokens"],
    "properties": {"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT},
}
_CHOICES = {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["finish_reason"]}}
_MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {"id": {"type": "string"}, "object": {"const": "model"}},
}


def _answer(kind: str, **properties: Json) -> Json:
    return {
        "type": "object",
        "required": ["object", *properties],
        "properties": {"object": {"const": kind}, **properties},
    }


_NAME: Json = {"type": "string"}
_ANSWERS: dict[tuple[str, str], Json] = {
    ("/v1/chat/completions", "post"): _answer(
        "chat.completion", id=_NAME, model=_NAME, choices=_CHOICES, usage=_USAGE
    ),
    ("/v1/completions", "post"): _answer(
        "text_completion", id=_NAME, model=_NAME, choices=_CHOICES, usage=_USAGE
    ),
    ("/v1/embeddings", "post"): _answer("list", model=_NAME, usage=_USAGE, data={"type": "array"}),
    ("/v1/models", "get"): _answer("list", data={"type": "array", "items": _MODEL}),
    ("/v1/models/{name}", "get"): _MODEL,
    ("/v1/responses", "post"): _answer("response", id=_NAME, model=_NAME, output={"type": "array"}),
    ("/v1/messages", "post"): {
        "type": "object",
        "required": ["id", "type", "role", "content", "stop_reason", "usage"],
        "properties": {"type": {"const": "message"}, "content": {"type": "array"}},
    },
    ("/v1/messages/count_tokens", "post"): {
        "type": "object",
        "required": ["input_tokens"],
        "properties": {"input_tokens": _COUNT},
    },
}
_EVENTS, _LINES = "text/event-stream", "application/x-ndjson"
_STREAMS = {  # their pieces: see docs/api.md
    "/v1/chat/completions": _EVENTS,
    "/v1/completions": _EVENTS,
    "/v1/responses": _EVENTS,
    "/v1/messages": _EVENTS,
    "/completion": _EVENTS,
    "/completions": _EVENTS,
    "/infill": _EVENTS,
    "/events": _EVENTS,
    "/api/chat": _LINES,
    "/api/generate": _LINES,
    "/api/pull": _LINES,
}


def describe(app: FastAPI, errors: ErrorForms, *, with_keys: bool) -> Json:
    """Return the OpenAPI document of `app`; `errors`: their forms.

    `with_keys`: all routes but /health want a key.
    """
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            error = _schema_of(errors.of(path)(HttpError(400, "…", "…")))
            _complete(operation, _ANSWERS.get((path, method)), error, stream=_STREAMS.get(path))
            if with_keys and path != "/health":
                operation["security"] = [{"bearer": []}, {"key": []}]
    components = document.setdefault("components", {})
    components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    if with_keys:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
        }
    return document


def _complete(operation: Json, answer: Json | None, error: Json, *, stream: str | None) -> None:
    responses = operation["responses"]
    responses.pop("422", None)  # a body that does not fit is a 400 here, as it is at OpenAI
    if answer is not None:
        responses["200"]["content"] = {"application/json": {"schema": answer}}
    if stream is not None:
        responses["200"]["content"][stream] = {}
    for status, why in _WHY.items():
        responses.setdefault(status, {"description": why, "content": {"application/json": {"schema": error}}})


def _schema_of(sample: Any) -> Json:
    """Return the schema of objects like `sample`: the same keys, with values of the same kinds or null."""
    if isinstance(sample, dict):
        properties = {name: _schema_of(value) for name, value in sample.items()}
        return {"type": "object", "required": list(sample), "properties": properties}
    return {"type": "integer"} if isinstance(sample, int) else {"type": ["string", "null"]}
