"""A server elsewhere, which passes sealed requests to its secure world: HTTP over kept connections."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpcore
import msgspec

from flexserve.errors import (
    CallerError,
    FlexServeError,
    PeerError,
    QueueFullError,
    UnknownModelError,
)
from flexserve.normal.network import Network

MAX_CONNECTIONS = 256
_CONNECT_SECONDS, _ANSWER_SECONDS = 10.0, 90.0  # the first attestation reads all that a world consists of
_MAX_ERROR = 1 << 16  # bytes
_BY_STATUS: dict[int, type[FlexServeError]] = {404: UnknownModelError, 429: QueueFullError}


class Attestation(msgspec.Struct, frozen=True):
    """The answer of GET /v1/attestation, which nobody vouches for."""

    chain: list[bytes]
    token: bytes


class RemoteServer:
    """The server at `url` (http:// or https://, without a path). `key`: one of its API keys, or empty.

    Nothing that it says is believed: it relays. One event loop.
    """

    def __init__(self, url: str, key: str = "") -> None:
        self.url = url.rstrip("/")
        self._headers = [("Content-Type", "application/octet-stream")]
        if key:
            self._headers.append(("Authorization", f"Bearer {key}"))
        self._pool = httpcore.AsyncConnectionPool(
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=MAX_CONNECTIONS,
            network_backend=Network(),
        )

    async def attestation(self, nonce: bytes) -> Attestation:
        """Return what the server says that its secure world answers to `nonce`.

        Raises PeerError when it does not answer so, CallerError when it refuses to.
        """
        with _network(self.url):
            answer = await self._pool.request(
                "GET",
                f"{self.url}/v1/attestation?nonce={nonce.hex()}",
                headers=self._headers,
                extensions=_timeout(_ANSWER_SECONDS),
            )
        if answer.status != 200:
            raise _refused(answer.status, answer.content)
        try:
            return msgspec.json.decode(answer.content, type=Attestation)
        except msgspec.MsgspecError:
            raise PeerError("The server attests in no known form.", hint="Is it a FlexServe?") from None

    @contextlib.asynccontextmanager
    async def sealed(self, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        """Send a sealed request; yield its sealed answer, piece by piece. Raises as `attestation`."""
        with _network(self.url):
            async with self._pool.stream(
                "POST",
                f"{self.url}/v1/sealed",
                headers=self._headers,
                content=body,
                extensions=_timeout(None),
            ) as answer:
                if answer.status != 200:
                    raise _refused(answer.status, await _beginning(answer))
                yield answer.aiter_stream()

    async def close(self) -> None:
        """Close its connections."""
        await self._pool.aclose()


def _timeout(read: float | None) -> dict[str, Any]:
    return {
        "timeout": {
            "connect": _CONNECT_SECONDS,
            "read": read,
            "write": _ANSWER_SECONDS,
            "pool": _ANSWER_SECONDS,
        }
    }


@contextlib.contextmanager
def _network(url: str) -> Any:
    """Make what goes wrong on the way a PeerError."""
    try:
        yield
    except httpcore.ConnectError:
        raise PeerError(
            f"No server answers at {url}.",
            hint="Is it running, and is the port right?",
            code="server_unreachable",
        ) from None
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
        raise PeerError(
            f"The server at {url} cannot be asked ({type(error).__name__}).",
            hint="Is it running? `flexserve connect URL` wants the address that it shows when it starts.",
            code="server_unreachable",
        ) from None


async def _beginning(answer: httpcore.Response) -> bytes:
    content = b""
    async for piece in answer.aiter_stream():
        content += piece
        if len(content) > _MAX_ERROR:
            break
    return content


def _refused(status: int, content: bytes) -> FlexServeError:
    """Return the server's error as ours."""
    try:
        said = json.loads(content)["error"]
        message, code = str(said["message"])[:2000], str(said["code"])[:64]
    except (ValueError, KeyError, TypeError, RecursionError):
        message, code = "", ""
    kind = _BY_STATUS.get(status) or (PeerError if status >= 500 else CallerError)
    return kind(f"The server says ({status}): {message or 'nothing.'}", code=code or None)
