"""A server elsewhere, which passes sealed requests to its secure world: HTTP over kept connections."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from flexserve.errors import (
    CallerError,
    FlexServeError,
    PeerError,
    QueueFullError,
    UnknownModelError,
)
from flexserve.normal.kept_connections import (
    Headers,
    HttpAnswer,
    KeptConnections,
    TransportError,
    UnreachableError,
)

_ANSWER_SECONDS = 90.0  # the first attestation reads all that a world consists of
_HEALTH_SECONDS = 10.0
_MAX_ATTESTATION, _MAX_ERROR = 1 << 22, 1 << 16  # bytes
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
        self._headers: Headers = [("Content-Type", "application/octet-stream")]
        if key:
            self._headers = [*self._headers, ("Authorization", f"Bearer {key}")]
        self._connections = KeptConnections(self.url)

    async def attestation(self, nonce: bytes) -> Attestation:
        """Return what the server says that its secure world answers to `nonce`.

        Raises PeerError when it does not answer so, CallerError when it refuses to.
        """
        target = f"/v1/attestation?nonce={nonce.hex()}"
        with _network(self.url):
            async with self._connections.ask("GET", target, self._headers, seconds=_ANSWER_SECONDS) as answer:
                if answer.status != 200:
                    raise _refused(answer.status, await _beginning(answer, _MAX_ERROR))
                content = await _beginning(answer, _MAX_ATTESTATION)
        try:
            return msgspec.json.decode(content, type=Attestation)
        except msgspec.MsgspecError:
            raise PeerError("The server attests in no known form.", hint="Is it a FlexServe?") from None

    async def check(self) -> None:
        """Return if the server says that it can serve now. Raises as `attestation`."""
        with _network(self.url):
            async with self._connections.ask(
                "GET", "/v1/health", self._headers, seconds=_HEALTH_SECONDS
            ) as answer:
                said = await _beginning(answer, _MAX_ERROR)
                if answer.status != 200:
                    raise _refused(answer.status, said)

    @contextlib.asynccontextmanager
    async def sealed(self, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        """Send a sealed request; yield its sealed answer, piece by piece. Raises as `attestation`."""
        with _network(self.url):
            async with self._connections.ask(
                "POST", "/v1/sealed", self._headers, body, seconds=None
            ) as answer:
                if answer.status != 200:
                    raise _refused(answer.status, await _beginning(answer, _MAX_ERROR))
                yield answer.pieces()

    async def close(self) -> None:
        """Close its connections."""
        self._connections.close()


@contextlib.contextmanager
def _network(url: str) -> Any:
    """Make what goes wrong on the way a PeerError."""
    try:
        yield
    except UnreachableError:
        raise PeerError(
            f"No server answers at {url}.",
            hint="Is it running, and is the port right?",
            code="server_unreachable",
        ) from None
    except TransportError as error:
        raise PeerError(
            f"The server at {url} cannot be asked ({error}).",
            hint="Is it running? `flexserve connect URL` wants the address that it shows when it starts.",
            code="server_unreachable",
        ) from None


async def _beginning(answer: HttpAnswer, most: int) -> bytes:
    """Return the body of an answer, or somewhat more than the first `most` bytes of it."""
    content = b""
    async for piece in answer.pieces():
        content += piece
        if len(content) > most:
            break
    return content


def _refused(status: int, content: bytes) -> FlexServeError:
    """Return the server's error as ours."""
    try:
        said = json.loads(content)["error"]
        message, code, hint = str(said["message"])[:2000], str(said["code"])[:64], str(said.get("hint", ""))
        message = message.removesuffix(hint).rstrip()  # which ends with it
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        message = code = hint = ""
    kind = _BY_STATUS.get(status) or (PeerError if status >= 500 else CallerError)
    return kind(f"The server says ({status}): {message or 'nothing.'}", hint=hint[:2000], code=code or None)
