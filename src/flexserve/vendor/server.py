"""A key server: licences over HTTP, each for a device that just proved what runs on it.

    POST /v1/challenge                                → {"nonce": HEX}
    POST /v1/licence  {nonce, chain, token, content}  → the licence

A nonce is good once, for a while. What is sent is sealed to the device and signed by the vendor, so the way
there needs no protection; who asks can be seen. Everything that comes is hostile: it is bounded in size, time
and number, and nothing of it becomes a path.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import http.server
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from flexserve.attestation.licence import KIND
from flexserve.attestation.policy import Policy
from flexserve.attestation.verification import AttestationRefusedError
from flexserve.errors import CallerError, FlexServeError, NormalWorldError
from flexserve.vendor.keys import Content, VendorKeys
from flexserve.vendor.licensing import Terms, issue, require_roots, verified_device

MAX_BODY = 1 << 16  # bytes
NONCE_LIFE = 120.0  # seconds
_NONCE_SIZE = 32  # bytes
_MAX_NONCES = 4096
_MAX_ADDRESSES = 4096  # whose requests are counted
_MAX_CONNECTIONS = 32
_STATUS = {
    "too_many_requests": HTTPStatus.TOO_MANY_REQUESTS,
    "unknown_path": HTTPStatus.NOT_FOUND,
    "unknown_content": HTTPStatus.NOT_FOUND,
}
_STALL, _TOTAL = 10.0, 30.0  # seconds that a request may stand still, and take


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a device sends. `content`: SHA-256 of the first block of the .flex file, hex; `nonce`: hex."""

    nonce: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z", max_length=64)]
    chain: Annotated[list[bytes], Meta(max_length=16)]
    token: bytes
    content: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z", max_length=64)]


class Challenges:
    """Nonces that were given out and not come back. Thread-safe; of too many the oldest is forgotten."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._ends: collections.OrderedDict[bytes, float] = collections.OrderedDict()

    def new(self) -> bytes:
        """Return a nonce that is good once."""
        nonce = secrets.token_bytes(_NONCE_SIZE)
        self.expect(nonce)
        return nonce

    def expect(self, nonce: bytes) -> None:
        """Have `nonce` be good once."""
        with self._lock:
            self._ends[nonce] = self._clock() + NONCE_LIFE
            while len(self._ends) > _MAX_NONCES:
                self._ends.popitem(last=False)

    def take(self, nonce: bytes) -> None:
        """Use `nonce` up. Raises AttestationRefusedError when it was not given out, used, or too old."""
        with self._lock:
            end = self._ends.pop(nonce, None)
        if end is None or end < self._clock():
            raise AttestationRefusedError(
                "nonce",
                f"one of the last {NONCE_LIFE:.0f} s, unused",
                nonce.hex(),
                "Ask for a new challenge.",
            )


class RateLimit:
    """So many requests a minute of each address, which may come at once. Thread-safe."""

    def __init__(self, a_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock, self._lock = a_minute, clock, threading.Lock()
        self._left: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()

    def admit(self, address: str) -> bool:
        """Return whether a request of `address` is served now."""
        now = self._clock()
        with self._lock:
            left, since = self._left.pop(address, (float(self._most), now))
            left = min(self._most, left + (now - since) * self._most / 60)
            admitted = left >= 1
            self._left[address] = left - admitted, now
            while len(self._left) > _MAX_ADDRESSES:
                self._left.popitem(last=False)
        return admitted


@dataclasses.dataclass(slots=True)
class KeyRelease:
    """Who gets licences of what. `log` is told of each licence and refusal, in a line."""

    keys: VendorKeys
    policy: Policy
    terms: Terms
    log: Callable[[str], None] = lambda _line: None
    challenges: Challenges = dataclasses.field(default_factory=Challenges)

    def __post_init__(self) -> None:
        """Raises CallerError for a policy that names no root."""
        require_roots(self.policy)

    def licence(self, body: bytes) -> bytes:
        """Return the licence that `body` asks for. Raises CallerError, AttestationRefusedError."""
        try:
            asked = msgspec.json.decode(body, type=Asked)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise CallerError(
                "That is no request for a licence.", hint="Use `flexserve add --license URL`."
            ) from None
        nonce = bytes.fromhex(asked.nonce)
        self.challenges.take(nonce)
        content = self._content(bytes.fromhex(asked.content))
        device = verified_device(asked.chain, asked.token, nonce, self.policy)
        licence = issue(self.keys, content, device, self.terms)
        self.log(f"licence of {content.name} {content.version} for root {device.root.hex()}")
        return licence

    def _content(self, digest: bytes) -> Content:
        """Return the content of that digest, whenever it was sealed."""
        try:
            found = self.keys.contents().get(digest)
        except CallerError as error:  # the vendor's mistake, and nothing that who asks should read
            raise NormalWorldError(error.message, hint=error.hint, code=error.code) from None
        if found is not None:
            return found
        raise CallerError(
            "This vendor has no such model.",
            hint="Check that the file is this vendor's.",
            code="unknown_content",
        )


class KeyServer(http.server.ThreadingHTTPServer):
    """Serves a KeyRelease at an address until `shutdown`."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], release: KeyRelease, *, a_minute: int = 30) -> None:
        """Listen at `address`. Raises OSError."""
        self.release, self.limit = release, RateLimit(a_minute)
        self._slots = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own; close it at once when there are too many."""
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, for so long and no longer."""
        end = threading.Timer(_TOTAL, _cut, (request,))
        end.daemon = True
        end.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            end.cancel()
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say that a connection broke; what it sent is not repeated."""
        del request
        self.release.log(f"a connection of {client_address[0]} broke")


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: KeyServer
    timeout = _STALL
    server_version, sys_version = "flexserve", ""

    def do_POST(self) -> None:
        """Answer one request; the connection ends with it."""
        try:
            if not self.server.limit.admit(self.client_address[0]):
                hint = "Wait a minute."
                raise CallerError("Too many requests of one address.", hint=hint, code="too_many_requests")
            body = self._body()
            if self.path == "/v1/challenge":
                nonce = self.server.release.challenges.new().hex()
                self._send(HTTPStatus.OK, "application/json", json.dumps({"nonce": nonce}).encode())
            elif self.path == "/v1/licence":
                self._send(HTTPStatus.OK, KIND, self.server.release.licence(body))
            else:
                hint = "Use `flexserve add --license URL`."
                raise CallerError("There is no such path.", hint=hint, code="unknown_path")
        except AttestationRefusedError as error:
            self.server.release.log(f"refused {self.client_address[0]}: {error.field}")
            self._refuse(HTTPStatus.FORBIDDEN, error)
        except CallerError as error:
            self._refuse(_STATUS.get(error.code, HTTPStatus.BAD_REQUEST), error)
        except FlexServeError as error:
            self.server.release.log(str(error))
            vague = CallerError("The server cannot answer now.", hint="Try again later.", code="unavailable")
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, vague)

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "0")
        if self.headers.get("Transfer-Encoding") or not length.isascii() or not length.isdecimal():
            raise CallerError("The length of the body is not said.", hint="Send Content-Length.")
        if len(length) > 6 or int(length) > MAX_BODY:
            raise CallerError(f"The body has more than {MAX_BODY} bytes.", hint="Send less.")
        return self.rfile.read(int(length))

    def _refuse(self, status: HTTPStatus, error: FlexServeError) -> None:
        said = {"code": error.code, "message": error.message, "hint": error.hint}
        if isinstance(error, AttestationRefusedError):
            said |= {"field": error.field, "expected": error.expected, "found": error.found}
        self._send(status, "application/json", json.dumps({"error": said}).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing: `KeyRelease.log` is told what matters."""
