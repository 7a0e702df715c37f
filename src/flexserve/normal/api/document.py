"""What /openapi.json says beyond what the framework finds out: errors, keys, forms of answers."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

Json = dict[str, Any]

_WHY = {
    "400": "The request is wrong in itself.",
    "401": "The server wants a key.",
    "403": "Called by a name or from a page that is not allowed.",
    "404": "There is no such thing.",
    "405": "Not with this method.",
    "408": "The body did not arrive.",
    "413": "The body is too large.",
    "429": "The queue is full.",
    "500": "The stored data is bad, or the server failed.",
    "503": "The server cannot serve now.",
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
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
}
_STREAMS = ("/v1/chat/completions", "/v1/completions")


def describe(app: FastAPI, *, with_keys: bool) -> Json:
    """Return the OpenAPI document of `app`; `with_keys`: all routes but /health want a bearer key."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete(operation, _ANSWERS.get((path, method)), streams=path in _STREAMS)
            if with_keys and path != "/health":
                operation["security"] = [{"bearer": []}]
    components = document.setdefault("components", {})
    components.setdefault("schemas", {})["Error"] = _ERROR
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    if with_keys:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    return document


def _complete(operation: Json, answer: Json | None, *, streams: bool) -> None:
    responses = operation["responses"]
    responses.pop("422", None)  # a body that does not fit is a 400 here, as it is at OpenAI
    if answer is not None:
        responses["200"]["content"] = {"application/json": {"schema": answer}}
    if streams:
        responses["200"]["content"]["text/event-stream"] = {}  # chunks; see docs/api.md
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for status, why in _WHY.items():
        responses.setdefault(status, {"description": why, "content": error})
