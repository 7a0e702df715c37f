"""Connections of `flexserve connect` to a server: requests leave whole, and faults have one type."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from flexserve.normal.kept_connections import KeptConnections, TransportError, UnreachableError

pytestmark = pytest.mark.anyio

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Server:
    """Answers each request at once, and hangs up then if it `closes`; `pieces` are what it read at a time."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.answer = ANSWER
        self.connections = 0
        self.closes = False
        self.url = ""

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while piece := await reader.read(1 << 16):
            self.pieces.append(piece)
            writer.write(self.answer)
            if self.closes:
                break
        writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    async with await asyncio.start_server(server.talk, "127.0.0.1", 0) as listening:
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        yield server


@pytest.fixture
async def http(server: Server) -> AsyncIterator[KeptConnections]:
    http = KeptConnections(server.url)
    yield http
    http.close()


async def asked(http: KeptConnections, body: bytes = b"", seconds: float | None = None) -> bytes:
    async with http.ask("POST", "/path", [("Name", "value")], body, seconds=seconds) as answer:
        assert answer.status == 200
        return b"".join([piece async for piece in answer.pieces()])


async def test_a_request_leaves_in_one_piece(server: Server, http: KeptConnections):
    assert await asked(http, b"x" * 3000) == b"ok"
    (piece,) = server.pieces
    head, _, body = piece.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /path HTTP/1.1\r\nHost: 127.0.0.1:")
    assert {b"Name: value", b"Content-Length: 3000"} < set(head.split(b"\r\n"))
    assert body == b"x" * 3000


async def test_a_connection_is_kept_and_one_that_was_closed_is_not_used_again(
    server: Server, http: KeptConnections
):
    for _ in range(2):
        await asked(http)
    assert server.connections == 1
    server.closes = True
    await asked(http)
    while not http._idle[0].ended:
        await asyncio.sleep(0.001)
    assert await asked(http) == b"ok"
    assert server.connections == 2


async def test_requests_at_once_have_connections_of_their_own(server: Server, http: KeptConnections):
    assert await asyncio.gather(*(asked(http) for _ in range(3))) == [b"ok"] * 3
    assert server.connections == 3
    await asked(http)
    assert server.connections == 3


async def test_a_connection_whose_answer_was_not_read_to_its_end_is_not_used_again(
    server: Server, http: KeptConnections
):
    server.answer = CHUNKED + b"2\r\nok\r\n"
    async with http.ask("GET", "/", [], seconds=None) as answer:
        assert await anext(answer.pieces()) == b"ok"
    server.answer = ANSWER
    assert await asked(http) == b"ok"
    assert server.connections == 2


async def test_pieces_come_as_they_are_sent_and_up_to_the_end(server: Server, http: KeptConnections):
    server.answer = CHUNKED + b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    assert await asked(http) == b"onetwo"
    server.answer = CHUNKED + b"3\r\none\r\n"
    server.closes = True
    with pytest.raises(TransportError, match="RemoteProtocolError"):
        await asked(http)


async def test_a_server_that_is_silent_or_speaks_no_http_is_an_error_of_the_network(
    server: Server, http: KeptConnections
):
    server.answer = b""
    with pytest.raises(TransportError, match="TimeoutError"):
        await asked(http, seconds=0.05)
    server.answer = b"220 mail.example\r\n\r\n"
    with pytest.raises(TransportError, match="RemoteProtocolError"):
        await asked(http)
    server.closes, server.answer = True, b""
    with pytest.raises(TransportError, match="RemoteProtocolError"):
        await asked(http)


async def test_a_server_that_is_not_there_is_told_apart():
    with pytest.raises(UnreachableError):
        await asked(KeptConnections("http://127.0.0.1:1"))
