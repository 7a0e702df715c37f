"""Servers to ask: FlexServe's own over a scripted world, and strangers."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Protocol

import pytest
import uvicorn
from typer.testing import Result

from flexserve.normal.api.admission import Admission
from flexserve.normal.api.app import create_app
from flexserve.normal.api.keys import Key, Keys
from flexserve.normal.world import supervised
from flexserve.policy.pressure import Limits
from flexserve.protocol.requests import Cancel, Convert, Generate
from flexserve.testing.script import Behaviour, Fault, Script
from flexserve.testing.scripted_link import AdjustableMemory, ScriptedLink
from flexserve.units import GIB, MIB

MODELS = {
    "tiny": Behaviour(),
    "slow": Behaviour(tokens=["word "] * 5000, token_delay=0.01),
    "forged": Behaviour(fault=Fault.FAIL),
    "dies": Behaviour(fault=Fault.DIE),
    "hungry": Behaviour(memory=64 * MIB, tokens=["word "] * 5000, token_delay=0.01),
}


class Cli(Protocol):
    def __call__(self, *arguments: str, stdin: str | None = None) -> Result: ...


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port at which nobody listens, and which nobody else gets meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield int(sock.getsockname()[1])


class ScriptedServer:
    """A real HTTP server over a scripted world, in a thread. `asked` holds what reached that world."""

    def __init__(self, sock: socket.socket, script: Script, keys: Sequence[str] = ()) -> None:
        self._sock, self._keys = sock, keys
        self._link = ScriptedLink(script)
        self._ready = threading.Event()
        self._server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    @property
    def asked(self) -> list[Generate]:
        return self._link.scripted.every(Generate)

    @property
    def converted(self) -> list[Convert]:
        return self._link.scripted.every(Convert)

    @property
    def cancelled(self) -> bool:
        return bool(self._link.scripted.every(Cancel))

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.should_exit = True
        self._thread.join(20)

    async def _serve(self) -> None:
        limits = Limits(low=2 * GIB, high=3 * GIB, emergency=GIB)
        async with supervised(self._link.launch, AdjustableMemory(), drain=0, limits=limits) as world:
            config = uvicorn.Config(
                create_app(world, Admission(keys=Keys([Key.of("mine", key) for key in self._keys]))),
                lifespan="off",
                log_config=None,
                timeout_graceful_shutdown=1,
            )
            self._server = uvicorn.Server(config)
            self._server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
            self._ready.set()
            await self._server.serve(sockets=[self._sock])


@contextlib.contextmanager
def scripted_server(
    monkeypatch: pytest.MonkeyPatch, models: dict[str, Behaviour], keys: Sequence[str] = ()
) -> Iterator[ScriptedServer]:
    sock = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv("FLEXSERVE_PORT", str(sock.getsockname()[1]))
    with ScriptedServer(sock, Script(models=models, max_queue=4), keys) as server:
        yield server


class Stranger:
    """A program that speaks HTTP and is not FlexServe. `heard` holds the bodies it was sent."""

    def __init__(self, answer: bytes, status: int = 200) -> None:
        self.heard: list[bytes] = []
        heard = self.heard

        class Handler(http.server.BaseHTTPRequestHandler):
            def _answer(self) -> None:
                heard.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(answer)

            do_GET = do_POST = _answer

            def log_message(self, *_: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = int(self._http.server_address[1])
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    def __enter__(self) -> Stranger:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
