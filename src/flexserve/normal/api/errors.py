"""FlexServe's errors as HTTP answers, in the form that the clients of each API expect."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from flexserve.errors import (
    Blame,
    CallerError,
    CancelledError,
    FlexServeError,
    NormalWorldError,
    QueueFullError,
    StoredDataError,
    UnknownModelError,
)

# Whose absence or value an error is about, by its code.
_PARAMS = {"model_not_named": "model", "too_many_dimensions": "dimensions"}
_SHOULD = "Input should be "  # how pydantic begins
_RETRY_SECONDS = 1  # a slot of the queue, or a restarted secure world, is seldom further away


@dataclasses.dataclass(frozen=True, slots=True)
class HttpError:
    """An error answer: its status, and what OpenAI's error object says."""

    status: int
    message: str
    type: str
    code: str | None = None
    param: str | None = None
    retry_after: int | None = None  # seconds
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)  # what the message counts
    blame: str = Blame.CALLER.value
    hint: str = ""  # what to do next: the message ends with it

    def body(self) -> dict[str, Any]:
        """Return OpenAI's form of it, in a response as in an event, with whose fault it is and what to do."""
        said = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": {**said, "blame": self.blame, "hint": self.hint}}

    def response(self, body: dict[str, Any] | None = None) -> Response:
        """Return the whole answer. `body`: its form, if it is not OpenAI's."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        text = json.dumps(self.body() if body is None else body)
        return Response(text, self.status, headers, media_type="application/json")


ErrorForm = Callable[[HttpError], dict[str, Any]]


class ErrorForms:
    """Which form errors have, by the beginning of the path; that of no known one is OpenAI's.

    "/v1/messages" is that path and all below it.
    """

    def __init__(self, forms: Mapping[str, ErrorForm]) -> None:
        self._forms = dict(forms)

    def of(self, path: str) -> ErrorForm:
        """Return the form of errors at `path`."""
        for known, form in self._forms.items():
            if path == known or path.startswith(f"{known}/"):
                return form
        return HttpError.body

    def response(self, path: str, error: HttpError) -> Response:
        """Return the answer to a request for `path` that ended in `error`."""
        return error.response(self.of(path)(error))


def invalid(
    message: str, *, param: str | None = None, code: str | None = None, status: int = 400
) -> HttpError:
    """Return the error for a request that is wrong in itself."""
    return HttpError(status, message, "invalid_request_error", code, param)


def unauthenticated() -> HttpError:
    """Return the error for a request without one of the server's keys."""
    return HttpError(
        401,
        "This server wants one of its API keys. Send it as Authorization: Bearer KEY, or as X-Api-Key.",
        "authentication_error",
        "invalid_api_key",
    )


def forbidden(right: str) -> HttpError:
    """Return the error for a request whose key lacks a right."""
    return HttpError(
        403,
        f"This key may not do that: it lacks the right {right}.",
        "permission_error",
        "right_missing",
    )


def rate_limited(seconds: int) -> HttpError:
    """Return the error for a key that asked for as much as it may; it may again after `seconds`."""
    return HttpError(
        429,
        f"This key has asked for as much as it may. It may ask again in {seconds} s.",
        "rate_limit_error",
        "rate_limited",
        retry_after=seconds,
    )


def unavailable(message: str, *, code: str) -> HttpError:
    """Return the error for a server that cannot serve now and may soon."""
    blame = Blame.NORMAL_WORLD.value
    return HttpError(503, message, "unavailable_error", code, retry_after=_RETRY_SECONDS, blame=blame)


def from_error(error: FlexServeError) -> HttpError:
    """Return the HTTP answer for `error`; the blame decides between 4xx, 503 and 500."""
    return dataclasses.replace(_answer_to(error), blame=error.blame.value, hint=error.hint)


def _answer_to(error: FlexServeError) -> HttpError:
    text = str(error)
    match error:
        case UnknownModelError():
            return invalid(text, param="model", code=error.code, status=404)
        case QueueFullError():
            return HttpError(429, text, "rate_limit_error", error.code, retry_after=_RETRY_SECONDS)
        case CancelledError() | NormalWorldError():
            return unavailable(text, code=error.code)
        case CallerError():
            refusal = invalid(text, param=_PARAMS.get(error.code), code=error.code)
            return dataclasses.replace(refusal, counts=error.counts)
        case StoredDataError():
            return HttpError(500, text, "stored_data_error", error.code)
        case _:
            return HttpError(500, text, "api_error", error.code)


def from_validation(error: RequestValidationError) -> HttpError:
    """Return the answer for a body that does not fit the schema: its first defect, by path.

    The text names types and bounds. The offending value, which may be a prompt, is left out.
    """
    first = error.errors()[0]
    kind, context = first["type"], first.get("ctx", {})
    param = context.get("param") or _path(first["loc"])
    if kind == "json_invalid":
        return invalid("The body is not valid JSON.")
    if kind == "unsupported":
        return invalid(first["msg"], param=param, code="unsupported_parameter")
    if kind == "unknown":
        return invalid(f"{param}: {first['msg']}", param=param, code="unknown_parameter")
    if kind in ("model_attributes_type", "dict_type") and param is None:
        return invalid("The body is not a JSON object sent as Content-Type: application/json.")
    where = f"{param}: " if param else "The body: "
    return invalid(f"{where}{_what(error, first)}.", param=param)


def _what(error: RequestValidationError, first: Any) -> str:
    """Return what is wrong with the field of the `first` defect: all that it might have been."""
    path = _path(first["loc"])
    wanted = [one["msg"] for one in error.errors() if _path(one["loc"]) == path]
    if not all(text.startswith(_SHOULD) for text in wanted):
        return str(first["msg"])
    return _SHOULD + " or ".join(dict.fromkeys(text.removeprefix(_SHOULD) for text in wanted))


def from_http(error: HTTPException) -> HttpError:
    """Return the answer for what the framework itself refuses (unknown route, wrong method …)."""
    known = {
        404: "There is no such route. GET /openapi.json lists them.",
        405: "The route has other methods.",
    }
    return invalid(known.get(error.status_code, str(error.detail)), status=error.status_code)


def _path(location: tuple[int | str, ...]) -> str | None:
    """Return ("body", "messages", 0, "content", "str") as "messages[0].content"."""
    path = ""
    for part in location[1:]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "bool", "int", "float"):
            path += f".{part}" if path else part
        else:
            break  # the name of a union's branch, not of a field
    return path or None
