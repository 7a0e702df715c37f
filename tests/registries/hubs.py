"""A server of this machine that behaves as hubs do: redirections, ranges, limits, broken connections."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any


@dataclasses.dataclass
class Hub:
    """What it serves, and how badly. `asked` are the paths and ranges that were asked for."""

    url: str = ""
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    answers: dict[str, Any] = dataclasses.field(default_factory=dict)  # JSON, by path
    redirects: dict[str, str] = dataclasses.field(default_factory=dict)
    ranges: bool = True
    break_after: list[int] = dataclasses.field(default_factory=list)  # bytes of the next answers' bodies
    busy: list[str] = dataclasses.field(default_factory=list)  # Retry-After of the next answers
    token: str = ""  # wanted for /private
    asked: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)  # path, range, authorization


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, _request: object, _address: object) -> None:
        """Say nothing of clients that go away."""


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve a hub while the block runs."""
    hub = Hub()
    server = _Server(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> Callable[..., http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path, wanted = self.path, self.headers.get("Range", "")
            hub.asked.append((path, wanted, self.headers.get("Authorization", "")))
            if hub.busy:
                return self._send(429, b"", {"Retry-After": hub.busy.pop(0)})
            if path in hub.redirects:
                return self._send(302, b"", {"Location": hub.redirects[path]})
            if path.startswith("/private") and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self._send(401, b"")
            if path in hub.answers:
                return self._send(200, json.dumps(hub.answers[path]).encode())
            if path not in hub.files:
                return self._send(404, b"")
            data, start = hub.files[path], 0
            if wanted and hub.ranges:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                extent = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
                return self._send(206, data[start:], extent | {"ETag": f'"{hash(data)}"'})
            return self._send(200, data, {"ETag": f'"{hash(data)}"'})

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            if breaks := bool(body and hub.break_after):
                self.send_header("Connection", "close")  # or a client sends its next request on this one
            self.end_headers()
            with contextlib.suppress(OSError):  # a client that reads the header only
                self.wfile.write(body[: hub.break_after.pop(0)] if breaks else body)

        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    return Handler
