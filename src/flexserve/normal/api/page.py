"""The server's own page: a picture of its memory and a chat, as files that browsers load and nothing builds.

The files are the same for everybody, so they need no key. What the page shows comes from the other routes,
with the key that it asks for.
"""

from __future__ import annotations

import functools
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from flexserve.normal.api import ollama

router = APIRouter()
_FOLDER = files("flexserve.normal") / "page"
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
# Nothing from elsewhere, nothing inline, no text taken for markup (trusted types), in nobody's frame.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@router.get("/", include_in_schema=False)
async def root(request: Request) -> Response:
    """Show the page to browsers; tell others, as ollama's command line, that somebody is here."""
    if "text/html" in request.headers.get("accept", ""):
        answer = _file("index.html")
    else:
        answer = await ollama.root()
    answer.headers["Vary"] = "Accept"
    return answer


@router.get("/page/{name}", include_in_schema=False)
async def file(name: str) -> Response:
    """Give out a file of the page."""
    if name not in _names():
        raise HTTPException(404)
    return _file(name)


def _file(name: str) -> Response:
    suffix = name.rpartition(".")[2]
    return Response(_content(name), headers=_HEADERS, media_type=_TYPES[suffix])


@functools.cache
def _names() -> frozenset[str]:
    return frozenset(entry.name for entry in _FOLDER.iterdir() if entry.name.rpartition(".")[2] in _TYPES)


@functools.cache
def _content(name: str) -> bytes:
    return (_FOLDER / name).read_bytes()
