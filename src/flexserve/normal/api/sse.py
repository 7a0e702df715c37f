"""Streams, as events or as lines, and noticing that the client went away."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
PING = b": still working\n\n"  # a comment: clients skip it, proxies see that the line is alive


class ClientGoneError(Exception):
    """The client closed its connection; nobody reads the answer."""


def event(data: Any) -> bytes:
    """Return `data` as one server-sent event."""
    return b"data: " + _compact(data) + b"\n\n"


def named_event(data: dict[str, Any]) -> bytes:
    """Return `data` as one server-sent event of the name that is its "type"."""
    return f"event: {data['type']}\n".encode() + event(data)


def line(data: Any) -> bytes:
    """Return `data` as one line of JSON."""
    return _compact(data) + b"\n"


def _compact(data: Any) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


class EventStream(Response):
    """Streams `events` until they end or the client goes away; `after` runs in either case."""

    def __init__(self, events: AsyncIterator[bytes], *, after: Callable[[], None], media_type: str) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(headers=headers, media_type=media_type)
        del self.headers["content-length"]
        self._events = events
        self._after = after

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as an ASGI application."""
        try:
            with contextlib.suppress(ClientGoneError):
                await while_connected(receive, self._send(send))
        finally:
            self._after()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._events:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end and return its result; cancel it when the client goes away.

    To be called once the request's body was read: what `receive` brings then is the disconnect.
    Raises ClientGoneError, or what `work` raises.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        gone.cancel()
        if not task.done():  # if it is, its result waits for no other task's end
            task.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
