"""What surrounds every request, whatever its route: identity, protection label, limits, one log line.

Three defences live here. A page in a browser that resolves its own name to this machine is
refused by the Host header, one that posts here from elsewhere by its Origin; a body is cut off
at a size no legal request has; and an exception nobody foresaw becomes a plain 500 whose log
line has the place but not the text, because the text may quote a prompt.
"""

from __future__ import annotations

import asyncio
import time
import traceback
import uuid
from contextvars import ContextVar
from email.utils import formatdate
from pathlib import Path
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import flexserve
from flexserve.normal.api.admission import Admission
from flexserve.normal.api.cors import granted, preflight
from flexserve.normal.api.errors import ErrorForms, HttpError, invalid
from flexserve.normal.api.keys import Right, key_of
from flexserve.normal.api.rights import needed
from flexserve.normal.audit_file import AuditFile
from flexserve.normal.models_world import ModelsWorld
from flexserve.normal.quota import Quota

# The longest legal prompt has 1 Mi characters; JSON writes one in up to six bytes.
MAX_BODY = 8 << 20

BODY_TIMEOUT = 30.0  # seconds without a byte of a body that was announced

OPEN_PATHS = ("/health", "/v1/health")  # one route, which needs no key
PROBED = (*OPEN_PATHS, "/metrics")  # what monitoring asks all the time
_PAGE_PATHS = ("/", "/page/")  # the server's page, the same for everybody: it asks for a key, then uses it

_PORTS = {"http": 80, "https": 443}

# The name of the request that this task answers, as X-Request-Id tells it to the client.
request_id: ContextVar[str] = ContextVar("request_id", default="")

# What the key that it came with may ask for; None: there is no key.
quota: ContextVar[Quota | None] = ContextVar("quota", default=None)

_OURS = Path(flexserve.__file__).parent

_log = structlog.get_logger(__name__)


class Envelope:
    """ASGI middleware around the whole application. `errors`: the forms of what it refuses.

    `admission` says whom it lets in. Its hosts, and the address that was connected to, are the only names a
    request may call this server by. Over a Unix socket, where no browser comes from, any name will do; but
    what a browser sent through a proxy has an Origin, which is checked there, too: it is this server's, or
    one of the admitted. One of the keys has to come with every request but those for /health and the server's
    page, and but a browser's question what a page may send.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        world: ModelsWorld,
        admission: Admission,
        errors: ErrorForms,
    ) -> None:
        self._app, self._errors = app, errors
        self._world, self._admission = world, admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request as an ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, protection=self._world.protection.name)
        headers = Headers(scope=scope)
        key = key_of(headers)
        scope.setdefault("state", {}).update(
            note=exchange.note, key=key, admitted=lambda: self._admits(headers, scope)
        )
        request_id.set(exchange.id)
        origin = headers.get("origin")
        if origin is not None and self._admission.origins.admit(origin):
            exchange.page = origin
        try:
            app = self._decided(headers, scope, exchange, from_page=exchange.page is not None)
            await app(scope, exchange.receive, exchange.send)
        except Exception as error:
            _log.error("unforeseen", request=exchange.id, kind=type(error).__name__, at=_place(error))
            if exchange.status is None:
                failure = HttpError(
                    500, "The server failed. Report this with its log.", "api_error", "internal_error"
                )
                answer = self._errors.response(scope["path"], failure)
                await answer(scope, exchange.receive, exchange.send)
        finally:
            exchange.log(self._admission.audit)

    def _decided(self, headers: Headers, scope: Scope, exchange: _Exchange, *, from_page: bool) -> ASGIApp:
        """Return what answers a request: the application, or a refusal."""
        refusal = self._refusal(headers, scope)
        if refusal is None and from_page and scope["method"] == "OPTIONS":
            answer = preflight(headers)
            if answer is not None:
                return answer
        if refusal is None and not _needs_no_key(scope["path"]):
            right = needed(scope["method"], scope["path"])
            asker, refusal = self._admission.judge(scope["state"]["key"], right)
            quota.set(self._admission.quota_of(asker))
            if asker is not None:
                exchange.note["key"] = asker.name
        return self._app if refusal is None else self._errors.response(scope["path"], refusal)

    def _admits(self, headers: Headers, scope: Scope) -> bool:
        """Return whether the sender of a request may still read: an answer without an end asks this again."""
        _, refusal = self._admission.judge(scope["state"]["key"], Right.READ)
        return refusal is None and self._stranger(headers, scope) is None

    def _refusal(self, headers: Headers, scope: Scope) -> HttpError | None:
        if (refusal := self._stranger(headers, scope)) is not None:
            return refusal
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or int(length[:20]) > MAX_BODY:
            return _too_large()
        return None

    def _stranger(self, headers: Headers, scope: Scope) -> HttpError | None:
        """Return the refusal of a request that a web page from elsewhere may have made."""
        names = {*self._admission.hosts, _own_address(scope)}
        host, port = _authority(f"//{headers.get('host', '')}")
        if host not in names and not _is_unix(scope):
            return invalid(
                "This server is not known by that name. --allowed-host makes it known by another.",
                code="host_not_allowed",
                status=403,
            )
        origin = headers.get("origin")
        if origin is None or self._admission.origins.admit(origin):
            return None
        page, page_port = _authority(origin)
        usual = _PORTS.get(urlsplit(origin).scheme) if page else None
        if page not in names or (page_port or usual) != (port or usual):
            return invalid(
                "Web pages from elsewhere may not call this server. --allow-origin lets those of an origin.",
                code="origin_not_allowed",
                status=403,
            )
        return None


class _Exchange:
    """One request and its answer: counts what comes in, labels what goes out, remembers for the log."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, protection: str) -> None:
        self.id = f"req-{uuid.uuid4().hex}"
        self.note: dict[str, object] = {}  # what routes add to the log line: model, counts, error code
        self.status: int | None = None
        self.page: str | None = None  # the origin of the page that asks and may
        self._scope = scope
        self._receive = receive
        self._send = send
        self._protection = protection
        self._began = time.monotonic()
        self._received = 0
        self._whole = False  # the body has arrived; the next message will be the disconnect

    async def receive(self) -> Message:
        """Pass a message of the request on.

        Raises HTTPException for a body beyond MAX_BODY, or that does not arrive.
        """
        try:
            async with asyncio.timeout(None if self._whole else BODY_TIMEOUT):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, "The body did not arrive.") from None
        self._whole = not message.get("more_body", False)
        self._received += len(message.get("body", b""))
        if self._received > MAX_BODY:
            raise HTTPException(413, _too_large().message)
        return message

    async def send(self, message: Message) -> None:
        """Pass a message of the answer on, labelled."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["Date"] = formatdate(usegmt=True)
            headers["X-Request-Id"] = self.id
            headers["Request-Id"] = self.id  # as Anthropic calls it
            headers["X-FlexServe-Protection"] = self._protection
            if self.page is not None:
                headers.update(granted(self.page))
        await self._send(message)

    def log(self, audit: AuditFile | None) -> None:
        """Write the one line of this request: no body, no query, and of the path only the route.

        Monitoring asks every few seconds, and a page has a dozen files: these are for the level debug only,
        and not for `audit`.
        """
        said = {
            "request": self.id,
            "method": self._scope["method"],
            "route": getattr(self._scope.get("route"), "path", None),
            "status": self.status,
            "ms": round((time.monotonic() - self._began) * 1000, 1),
            **self.note,
        }
        path = self._scope["path"]
        if (path in PROBED or _needs_no_key(path)) and self.status in (200, 503):
            _log.debug("request", **said)
            return
        _log.info("request", **said)
        if audit is not None:
            peer, _ = self._scope.get("client") or ("unix", None)
            audit.record("request", peer=peer, **said)


def _needs_no_key(path: str) -> bool:
    root, files = _PAGE_PATHS
    return path in OPEN_PATHS or path == root or path.startswith(files)


def _too_large() -> HttpError:
    return invalid(f"The body is larger than {MAX_BODY >> 20} MiB.", code="body_too_large", status=413)


def _is_unix(scope: Scope) -> bool:
    """Whether the request came over a Unix socket: its "server" is the absolute path, without a port."""
    host, port = scope.get("server") or ("", None)
    return port is None and host.startswith("/")


def _own_address(scope: Scope) -> str | None:
    """Return the address that the client connected to, as a Host header has it."""
    host, _ = scope.get("server") or (None, None)
    return host.lower() if host and not _is_unix(scope) else None


def _authority(url: str) -> tuple[str | None, int | None]:
    """Return the name and the port in `url`; None for what is not there."""
    try:
        parts = urlsplit(url)
        return parts.hostname, parts.port
    except ValueError:
        return None, None


def _place(error: Exception) -> str:
    """Return the innermost place in FlexServe's own code: one in a library tells little."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_OURS)]
    frame = (ours or frames)[-1]
    return f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
