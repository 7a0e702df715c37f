"""What `flexserve connect` understands of a server's answers that are not sealed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flexserve.errors import CallerError, FlexServeError, PeerError, UnknownModelError
from flexserve.normal.api.errors import from_error
from flexserve.normal.remote_server import RemoteServer

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def answering(status: int, body: Any) -> AsyncIterator[RemoteServer]:
    """A server that answers each request in the same way."""
    data = json.dumps(body).encode()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as listening:
        server = RemoteServer(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        yield server
        await server.close()


async def refused(status: int, body: Any) -> FlexServeError:
    async with answering(status, body) as server:
        with pytest.raises(FlexServeError) as caught:
            await server.check()
    return caught.value


async def test_a_server_that_is_well_is_asked_again_and_again():
    async with answering(200, {"status": "ok"}) as server:
        await server.check()
        await server.check()


async def test_an_error_of_the_server_keeps_its_type_its_code_and_what_to_do():
    error = from_error(UnknownModelError("There is no model named 'x'.", hint="`flexserve list` shows them."))
    heard = await refused(error.status, error.body())
    assert isinstance(heard, UnknownModelError)
    assert heard.message == "The server says (404): There is no model named 'x'."
    assert heard.hint == "`flexserve list` shows them."


@pytest.mark.parametrize("body", ["text", [], {"error": "text"}, {"error": {"message": 3}}, None])
async def test_what_is_no_error_of_ours_is_one_all_the_same(body: Any):
    assert isinstance(await refused(503, body), PeerError)
    assert isinstance(await refused(400, body), CallerError)
