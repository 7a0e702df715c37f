"""Connections of an HTTP client (httpcore) on asyncio's streams: each request leaves in one piece.

httpcore writes a request's head and its body apart. Each piece wakes the server, which has no use for the
first alone, and takes the core from whoever has yet to send the second.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterable, Iterator
from typing import Any

import httpcore


class Network(httpcore.AsyncNetworkBackend):
    """What httpcore connects by."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect. Raises ConnectError, ConnectTimeout."""
        assert local_address is None
        assert socket_options is None
        with _errors_as(httpcore.ConnectError, httpcore.ConnectTimeout):
            async with asyncio.timeout(timeout):
                return _Stream(*await asyncio.open_connection(host, port))

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


class _Stream(httpcore.AsyncNetworkStream):
    """One connection. What is written leaves when an answer is read."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._waiting = bytearray()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _errors_as(httpcore.ReadError, httpcore.ReadTimeout):
            async with asyncio.timeout(timeout):
                if self._waiting:
                    self._writer.write(bytes(self._waiting))
                    self._waiting.clear()
                    await self._writer.drain()
                return await self._reader.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        self._waiting += buffer

    async def aclose(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        with _errors_as(httpcore.ConnectError, httpcore.ConnectTimeout):
            async with asyncio.timeout(timeout):
                await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # of an idle connection: whether the server has closed it
            return self._reader.at_eof()
        return self._writer.get_extra_info(info)


@contextlib.contextmanager
def _errors_as(error: type[Exception], late: type[Exception]) -> Iterator[None]:
    """Make what asyncio raises httpcore's."""
    try:
        yield
    except TimeoutError as happened:
        raise late(str(happened)) from happened
    except OSError as happened:  # ssl.SSLError is one
        raise error(str(happened)) from happened
