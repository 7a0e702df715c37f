"""Web pages from elsewhere that may call the server (Cross-Origin Resource Sharing), by their origins."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response

from flexserve.errors import CallerError

ANY = "*"
_REMEMBERED = 600  # seconds for which a browser need not ask again
_SHOWN = "X-Request-Id, X-FlexServe-Protection, Retry-After"  # besides what pages may read anyway


class Origins:
    """The origins whose pages are let in. Raises CallerError for what no browser would send as one."""

    def __init__(self, origins: Iterable[str] = ()) -> None:
        self._known = frozenset(checked_origin(origin) for origin in origins)

    @property
    def any(self) -> bool:
        """Whether every page is let in."""
        return ANY in self._known

    def admit(self, origin: str | None) -> bool:
        """Return whether a page of `origin` is let in; None: no page asks."""
        return origin is not None and (self.any or origin.lower() in self._known)


def checked_origin(origin: str) -> str:
    """Return an origin ("https://app.example", or "*") as browsers send it. Raises CallerError."""
    if origin == ANY:
        return origin
    try:
        parts = urlsplit(origin)
        known = parts.scheme and parts.hostname and parts.port != 0
    except ValueError:
        known = False
    if not known or origin.lower() != f"{parts.scheme}://{parts.netloc}".lower() or "@" in parts.netloc:
        raise CallerError(
            "An allowed origin is written as browsers send it.",
            hint='Give --allow-origin SCHEME://NAME or SCHEME://NAME:PORT, or "*" for all pages.',
            code="bad_origin",
        )
    return origin.lower()


def granted(origin: str) -> dict[str, str]:
    """Return the headers of an answer that a page of `origin` may read."""
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": _SHOWN,
        "Vary": "Origin",
    }


def preflight(headers: Headers) -> Response | None:
    """Return the answer to the question what a page may send; None: it is no such question."""
    method = headers.get("access-control-request-method")
    if method is None:
        return None
    answer = {"Access-Control-Allow-Methods": method, "Access-Control-Max-Age": str(_REMEMBERED)}
    if (wanted := headers.get("access-control-request-headers")) is not None:
        answer["Access-Control-Allow-Headers"] = wanted
    if headers.get("access-control-request-private-network") == "true":
        answer["Access-Control-Allow-Private-Network"] = "true"
    return Response(status_code=204, headers=answer)
