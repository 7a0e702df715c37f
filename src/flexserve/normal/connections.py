"""Connections of clients: how many there may be, and how long one may take to say what it wants.

A connection *waits* until its whole request is here, and is *busy* from then to the end of the answer. When
a peer has too many, or all have, the one that waits longest goes; so half-open connections, however
many, keep nobody out. Where all are busy, a few more are taken in that get an answer from /health only.
Connections over a Unix socket have limits of their own, and are for this user and root.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
from typing import Any

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from flexserve.normal.api.envelope import OPEN_PATHS
from flexserve.normal.api.errors import unavailable
from flexserve.normal.peers import is_trusted, user_of_unix_peer

_UNIX = "unix"  # the peer that all connections over a Unix socket are of
_WAITING = (h11.IDLE, h11.SEND_BODY)  # states of a client that has not said all of a request


@dataclasses.dataclass(frozen=True, slots=True)
class Bounds:
    """The most connections. Together they leave room in the usual 1024 descriptors of a process."""

    tcp: int = 512
    peer: int = 256  # of one address
    unix: int = 128
    reserve: int = 64  # beyond the others, for /health
    header_seconds: float = 10.0  # from the first byte of a request, or the connection, to the header's end


class Door:
    """All connections of a server. Belongs to its event loop."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self.bounds = bounds or Bounds()
        self._peers: dict[Connection, str] = {}  # the oldest first
        self._reserve: dict[Connection, None] = {}

    def enter(self, connection: Connection, peer: str) -> bool:
        """Take `connection` in, for which another may have to go; return whether it has the reserve only."""
        if self._makes_room(peer):
            self._peers[connection] = peer
            return False
        if len(self._reserve) >= self.bounds.reserve:
            self._drop(next(iter(self._reserve)))
        self._reserve[connection] = None
        return True

    def leave(self, connection: Connection) -> None:
        """Forget `connection`, which is closed. Always safe."""
        self._peers.pop(connection, None)
        self._reserve.pop(connection, None)

    def _makes_room(self, peer: str) -> bool:
        counts = collections.Counter(self._peers.values())
        if peer == _UNIX:
            return counts[_UNIX] < self.bounds.unix or self._drop_waiting({_UNIX})
        if counts[peer] >= self.bounds.peer:
            return self._drop_waiting({peer})
        if counts.total() - counts[_UNIX] >= self.bounds.tcp:
            return self._drop_waiting(counts.keys() - {_UNIX})
        return True

    def _drop_waiting(self, peers: set[str]) -> bool:
        """Close the connection of `peers` that waits longest; return whether there was one."""
        for connection, peer in self._peers.items():
            if peer in peers and connection.waits:
                self._drop(connection)
                return True
        return False

    def _drop(self, connection: Connection) -> None:
        self.leave(connection)
        connection.transport.abort()


class Connection(H11Protocol):  # type: ignore[misc]  # the HTTP server has no types
    """One connection, as the HTTP server drives it."""

    def __init__(self, door: Door, **of_the_server: Any) -> None:
        super().__init__(**of_the_server)
        self.app: ASGIApp
        self._door = door
        self._deadline: asyncio.TimerHandle | None = None
        self._reserved = False

    @property
    def waits(self) -> bool:
        """Whether the client has not said all of a request, and gets no answer now."""
        return self.conn.their_state in _WAITING

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Take the connection in, or close it at once."""
        super().connection_made(transport)
        peer = self.client[0] if self.client else _UNIX
        sock = transport.get_extra_info("socket")
        if peer == _UNIX and not is_trusted(user_of_unix_peer(sock)):
            transport.abort()
            return
        self._reserved = self._door.enter(self, peer)
        if self._reserved:
            self.app = _only_health(self.app)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._door.leave(self)
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take a piece of a request in."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._watch()
        else:
            self._unwatch()

    def on_response_complete(self) -> None:
        """Go on with the next request, if there may be one."""
        super().on_response_complete()
        if self._reserved:
            self.transport.close()

    def _watch(self) -> None:
        if self._deadline is None:
            seconds = self._door.bounds.header_seconds
            self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _only_health(app: ASGIApp) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in OPEN_PATHS:
            await app(scope, receive, send)
        else:
            refusal = unavailable("There are too many connections.", code="too_many_connections")
            await refusal.response()(scope, receive, send)

    return answer
