"""Connections of `flexserve connect` to a server: requests leave whole, and what goes wrong is httpcore's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpcore
import pytest

from flexserve.normal.network import Network

pytestmark = pytest.mark.anyio

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Answers at once, and hangs up then if it `closes`; `pieces` are what it read at a time."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.connections = 0
        self.closes = self.silent = False
        self.url = ""

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while piece := await reader.read(1 << 16):
            self.pieces.append(piece)
            if self.silent:
                continue
            writer.write(ANSWER)
            if self.closes:
                break
        writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    async with await asyncio.start_server(server.talk, "127.0.0.1", 0) as listening:
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
        yield server


@contextlib.asynccontextmanager
async def pool() -> AsyncIterator[httpcore.AsyncConnectionPool]:
    async with httpcore.AsyncConnectionPool(network_backend=Network()) as pool:
        yield pool


async def test_a_request_leaves_in_one_piece(server: Server):
    async with pool() as http:
        answer = await http.request("POST", server.url, content=b"x" * 3000)
    assert answer.content == b"ok"
    (piece,) = server.pieces
    assert piece.startswith(b"POST / HTTP/1.1\r\n")
    assert piece.endswith(b"x" * 3000)


async def test_a_connection_is_kept_and_one_that_was_closed_is_not_used_again(server: Server):
    async with pool() as http:
        for _ in range(2):
            await http.request("GET", server.url)
        assert server.connections == 1
        server.closes = True
        await http.request("GET", server.url)
        while http.connections and not http.connections[0].has_expired():
            await asyncio.sleep(0.001)
        assert (await http.request("GET", server.url)).content == b"ok"
    assert server.connections == 2


async def test_a_server_that_is_not_there_or_silent_is_an_error_of_the_network(server: Server):
    server.silent = True
    async with pool() as http:
        with pytest.raises(httpcore.ReadTimeout):
            await http.request("GET", server.url, extensions={"timeout": {"read": 0.05}})
        with pytest.raises(httpcore.ConnectError):
            await http.request("GET", "http://127.0.0.1:1/")
