"""HTTP requests to one server over connections that are kept: HTTP/1.1 by h11, on asyncio's streams.

A request leaves in one piece, head and body: each piece wakes the server, which has no use for the first
alone. Between a client and its answer lies no more than this, since each layer costs time to the first token.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from urllib.parse import urlsplit

import h11

_PIECE = 1 << 16  # bytes read at a time
_PORTS = {"http": 80, "https": 443}
Headers = Sequence[tuple[str, str]]


class TransportError(Exception):
    """The server closes the connection, is silent, or speaks no HTTP. The text names the kind of fault."""


class UnreachableError(TransportError):
    """No connection to the server comes about."""


@dataclasses.dataclass(frozen=True, slots=True)
class Bounds:
    """The most connections at once, and seconds: to connect, to send a request, or to wait for a free one."""

    connections: int = 256
    connect: float = 10.0
    send: float = 90.0


class HttpAnswer:
    """The answer to one request: its status, and its body to be read once."""

    def __init__(self, connection: _Connection, status: int, seconds: float | None) -> None:
        self.status = status
        self._connection, self._seconds = connection, seconds

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes. Raises TransportError when it breaks off, or is silent for too long."""
        while isinstance(event := await self._connection.event(self._seconds), h11.Data):
            yield bytes(event.data)


class KeptConnections:
    """Connections to the server at `url` (http:// or https://, without a path). One event loop."""

    def __init__(self, url: str, bounds: Bounds | None = None) -> None:
        parts = urlsplit(url)
        self._bounds = bounds or Bounds()
        self._host, self._port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        self._authority = parts.netloc.rpartition("@")[2]
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._idle: list[_Connection] = []
        self._free = asyncio.Semaphore(self._bounds.connections)

    @contextlib.asynccontextmanager
    async def ask(
        self, method: str, target: str, headers: Headers, body: bytes = b"", *, seconds: float | None
    ) -> AsyncIterator[HttpAnswer]:
        """Send a request; yield its answer once its head is here. `seconds`: that the server may be silent.

        Raises UnreachableError, TransportError. A connection whose answer is not read to its end is closed.
        """
        with _transport_errors():
            async with asyncio.timeout(self._bounds.send):
                await self._free.acquire()
        try:
            connection = self._kept() or await self._opened()
            try:
                fields = [("Host", self._authority), ("Content-Length", str(len(body))), *headers]
                await connection.send(method, target, fields, body, self._bounds.send)
                status = await connection.status(seconds)
                yield HttpAnswer(connection, status, seconds)
            finally:
                if connection.can_be_used_again():
                    self._idle.append(connection)
                else:
                    connection.close()
        finally:
            self._free.release()

    def close(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            self._idle.pop().close()

    def _kept(self) -> _Connection | None:
        """Return the connection that was used last; None: the server has closed them all."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.ended:
                return connection
            connection.close()
        return None

    async def _opened(self) -> _Connection:
        try:
            async with asyncio.timeout(self._bounds.connect):
                return _Connection(*await asyncio.open_connection(self._host, self._port, ssl=self._ssl))
        except OSError as error:
            raise UnreachableError(type(error).__name__) from error


class _Connection:
    """One connection, which answers one request after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._http = h11.Connection(h11.CLIENT)

    @property
    def ended(self) -> bool:
        """Whether the server has closed it."""
        return self._reader.at_eof() or self._writer.is_closing()

    async def send(self, method: str, target: str, headers: Headers, body: bytes, seconds: float) -> None:
        """Send a request in one piece. Raises TransportError after `seconds`, and for what HTTP forbids."""
        with _transport_errors():
            request = h11.Request(method=method, target=target, headers=list(headers))
            events = (request, h11.Data(body), h11.EndOfMessage())
            self._writer.write(b"".join([self._http.send(event) or b"" for event in events]))
            async with asyncio.timeout(seconds):
                await self._writer.drain()

    async def status(self, seconds: float | None) -> int:
        """Return the status of the answer, when its head is here."""
        while isinstance(event := await self.event(seconds), h11.InformationalResponse):
            pass
        assert isinstance(event, h11.Response), "h11 lets nothing else come first"
        return event.status_code

    async def event(self, seconds: float | None) -> h11.Event:
        """Return what comes next of an answer. Raises TransportError after `seconds` without a byte."""
        with _transport_errors():
            while (event := self._http.next_event()) is h11.NEED_DATA:
                async with asyncio.timeout(seconds):
                    self._http.receive_data(await self._reader.read(_PIECE))
        assert isinstance(event, h11.Event), "nothing is read behind the end of an answer"
        return event

    def can_be_used_again(self) -> bool:
        """Have it ready for another request, if both sides are done with the last; return whether it is."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE or self.ended:
            return False
        self._http.start_next_cycle()
        return True

    def close(self) -> None:
        self._writer.transport.abort()


@contextlib.contextmanager
def _transport_errors() -> Iterator[None]:
    """Make what h11 and asyncio raise a TransportError. TimeoutError is an OSError, and ssl.SSLError."""
    try:
        yield
    except (h11.ProtocolError, OSError) as error:
        raise TransportError(type(error).__name__) from error
