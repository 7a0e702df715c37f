"""Connections that say nothing, in hundreds, beside clients that want an answer."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from flexserve.normal.api.app import create_app
from flexserve.normal.connections import Bounds, Connection, Door
from flexserve.normal.world import World

pytestmark = pytest.mark.anyio
HALF_OPEN = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
BODY = b'{"model": "stuck", "prompt": "x"}'
BUSY = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BUSY += b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Server:
    """The application behind a door, on TCP and on a Unix socket."""

    def __init__(self, port: int, unix: Path) -> None:
        self.url, self._port, self._unix = f"http://127.0.0.1:{port}", port, unix
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self, said: bytes, *, unix: bool = False) -> Streams:
        opening = asyncio.open_unix_connection(self._unix) if unix else None
        streams = await (opening or asyncio.open_connection("127.0.0.1", self._port))
        self._writers.append(streams[1])
        streams[1].write(said)
        return streams

    async def get(self, path: str, *, unix: bool = False) -> int:
        transport = httpx.AsyncHTTPTransport(uds=str(self._unix)) if unix else None
        async with httpx.AsyncClient(transport=transport, base_url=self.url, timeout=60) as client:
            return (await client.get(path)).status_code

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def serving(world: World, folder: Path, bounds: Bounds) -> AsyncIterator[Server]:
    http = functools.partial(Connection, Door(bounds))
    config = uvicorn.Config(create_app(world), http=http, lifespan="off", log_config=None)  # type: ignore[arg-type]
    program = uvicorn.Server(config)
    program.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
    with socket.create_server(("127.0.0.1", 0), backlog=512) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(folder / "s"))
        task = asyncio.create_task(program.serve(sockets=[tcp, unix]))
        while not program.started:
            await asyncio.sleep(0.005)
        server = Server(tcp.getsockname()[1], folder / "s")
        yield server
        server.close()
        program.should_exit = program.force_exit = True
        await task


async def closed(streams: Streams) -> None:
    with contextlib.suppress(ConnectionError):
        await streams[0].read()


async def test_hundreds_of_half_open_connections_keep_nobody_out(world: World, tmp_path: Path) -> None:
    async with serving(world, tmp_path, Bounds(tcp=64, peer=32, unix=8)) as server:
        for _ in range(300):
            await server.connect(HALF_OPEN)
        for _ in range(30):
            await server.connect(HALF_OPEN, unix=True)
        for unix in (False, True):
            assert await server.get("/health", unix=unix) == 200
            assert await server.get("/models", unix=unix) == 200


async def test_a_header_that_never_ends_is_cut_off(world: World, tmp_path: Path) -> None:
    async with serving(world, tmp_path, Bounds(header_seconds=0.05)) as server:
        for said in (b"", HALF_OPEN, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + HALF_OPEN):
            await closed(await server.connect(said))


async def test_where_all_are_busy_health_answers_and_the_rest_says_so(world: World, tmp_path: Path) -> None:
    async with serving(world, tmp_path, Bounds(tcp=3, peer=3, reserve=2)) as server:
        busy = [await server.connect(BUSY) for _ in range(3)]
        while (await world.report()).status.running < 3:
            await asyncio.sleep(0.005)
        for _ in range(20):
            await server.connect(HALF_OPEN)
        assert await server.get("/health") == 200
        assert await server.get("/models") == 503
        assert await server.get("/models", unix=True) == 200
        busy[0][1].close()
        while await server.get("/models") != 200:
            await asyncio.sleep(0.005)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to start a program of another user")
async def test_another_users_program_gets_nothing_at_the_unix_socket(world: World, tmp_path: Path) -> None:
    async with serving(world, tmp_path, Bounds()) as server:
        tmp_path.chmod(0o755)
        (tmp_path / "s").chmod(0o666)  # as if its mode and folder had kept nobody out
        program = f"""
import os, socket
sock = socket.socket(socket.AF_UNIX)
os.chdir({str(tmp_path)!r})
os.setresuid(65534, 65534, 65534)
sock.connect("s")
try:
    sock.sendall(b"GET /health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    print(sock.recv(100))
except ConnectionError:
    print(b"")
"""
        command = [sys.executable, "-c", program]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        assert out == b"b''\n"
        assert await server.get("/health", unix=True) == 200


async def test_a_peer_that_is_busy_leaves_room_for_others(world: World, tmp_path: Path) -> None:
    async with serving(world, tmp_path, Bounds(tcp=4, peer=2, reserve=1)) as server:
        await server.connect(BUSY)
        await server.connect(BUSY)
        other = await asyncio.open_connection(
            "127.0.0.1", int(server.url.rpartition(":")[2]), local_addr=("127.0.0.2", 0)
        )
        other[1].write(b"GET /models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await other[0].read()).startswith(b"HTTP/1.1 200")
        other[1].close()
