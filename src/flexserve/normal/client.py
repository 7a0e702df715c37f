"""A client of a running server, over TCP or a Unix socket.

What the server sends is checked and bounded like any input; what goes wrong is raised as one of
flexserve.errors. Nothing here logs, and no error text quotes a prompt or an answer.
"""

from __future__ import annotations

import contextlib
import urllib.parse
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import httpcore
import msgspec

from flexserve.errors import (
    Blame,
    CallerError,
    FlexServeError,
    PeerError,
    rebuild,
)
from flexserve.normal.address import CONNECT_TIMEOUT, Address, NoServerError
from flexserve.normal.imports import hidden
from flexserve.normal.peers import check_server
from flexserve.normal.reports import (
    Answer,
    Attestation,
    CapResult,
    Card,
    Cards,
    DecisionLog,
    Ending,
    Event,
    Health,
    MemoryState,
    NeedResult,
    RecallResult,
    States,
)
from flexserve.protocol.answer_parts import Thought
from flexserve.protocol.answers import Timings, Usage
from flexserve.protocol.model_options import ModelOptions
from flexserve.protocol.prompts import ChatMessage
from flexserve.protocol.sampling import Sampling

with hidden("click"):  # where it finds that, httpx has a command line, which is half of its import
    import httpx

SILENCE_TIMEOUT = 60.0  # seconds; a server that is at work on an answer pings every 5
MAX_BODY = 16 << 20  # bytes of an answer in one piece
MAX_EVENT = 4 << 20  # bytes of one event of a stream

T = TypeVar("T")


class Client:
    """A client of the server at `address`: a context manager, thread-safe as httpx.Client is.

    A server on this machine is sent nothing, no key and no prompt, unless it is this user's or root's: its
    methods raise PeerError (code "server_of_another_user") otherwise. One elsewhere is whoever answers
    there, over a line that is not encrypted. Raises CallerError for what cannot be an address.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        uds = str(address.unix_socket) if address.unix_socket else None
        with _translating(address):
            self._http = httpx.Client(
                base_url=address.url,
                # No proxy of the environment: a prompt goes to this server and nowhere else.
                transport=_CheckedTransport(uds),
                trust_env=False,
                headers={"Authorization": f"Bearer {address.key}"} if address.key else None,
                timeout=httpx.Timeout(SILENCE_TIMEOUT, connect=CONNECT_TIMEOUT),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def health(self) -> Health:
        """Return what serves there. Raises NoServerError, or PeerError while it cannot serve."""
        return self._whole("GET", "/health", Health)

    def cards(self) -> list[Card]:
        """Return the models that can be asked there, whose memory may be elsewhere (`flexserve connect`)."""
        return self._whole("GET", "/v1/models", Cards).data

    def states(self) -> States:
        """Return where every byte is. Wakes no model."""
        return self._whole("GET", "/models", States)

    def recall(self, size: int | None, *, deadline_ms: float) -> RecallResult:
        """Take `size` bytes back (None: all that no running request uses); return what came."""
        return self._whole("POST", "/recall", RecallResult, {"bytes": size, "deadline_ms": deadline_ms})

    def let_go(self, model: str) -> None:
        """Have `model` leave memory as soon as no request uses it. Raises UnknownModelError."""
        self._whole("POST", "/memory/unload", dict, {"model": model})

    def memory(self) -> MemoryState:
        """Return what is granted and what may be."""
        return self._whole("GET", "/memory", MemoryState)

    def need(self, size: int, *, deadline_ms: float, hold_seconds: float) -> NeedResult:
        """Have `size` bytes available for this program; return what the OS counts then."""
        body = {"size": size, "deadline_ms": deadline_ms, "hold_seconds": hold_seconds}
        return self._whole("POST", "/memory/need", NeedResult, body)

    def set_cap(self, size: int | None) -> CapResult:
        """Let at most `size` bytes be granted; None: no cap."""
        return self._whole("PUT", "/memory/cap", CapResult, {"size": size})

    def set_pins(self, models: list[str]) -> None:
        """Pin `models` and no others. Raises UnknownModelError."""
        self._whole("PUT", "/memory/pins", dict, {"models": models})

    def set_options(self, model: str, options: ModelOptions) -> None:
        """Have `model` served so from when it is opened next. Raises UnknownModelError, CallerError."""
        path = f"/models/{urllib.parse.quote(model)}/options"
        self._whole("PUT", path, dict, msgspec.to_builtins(options))

    def decisions(self, *, after: int = 0) -> DecisionLog:
        """Return the last memory decisions numbered above `after`, oldest first."""
        return self._whole("GET", f"/memory/decisions?after={after}", DecisionLog)

    def events(self, *, follow: bool) -> Generator[Event]:
        """Yield what a watcher is shown: one look, or with `follow` also what changes, to the server's end.

        Raises PeerError when the server goes away.
        """
        with self._request("GET", f"/events?follow={str(follow).lower()}", None) as response:
            for data in _events(response):
                yield _decode(data, cast("type[Event]", Event))

    def attestation(self, nonce: bytes) -> Attestation:
        """Return the chain and the token of the secure world, which `flexserve.attestation` verifies."""
        return self._whole("GET", f"/v1/attestation?nonce={nonce.hex()}", Attestation)

    def ask(self, model: str, messages: list[ChatMessage], sampling: Sampling) -> Answer:
        """Yield the answer as it comes, then its Ending. Closing it cancels the request.

        Raises the server's own error as its type in flexserve.errors, PeerError when it goes away.
        """
        body = {
            "model": model,
            "messages": [{"role": turn.role, "content": turn.content} for turn in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            **_sampling(sampling),
        }
        with self._request("POST", "/v1/chat/completions", body) as response:
            yield from _answer(response)

    def _whole(self, method: str, path: str, kind: type[T], body: Any = None) -> T:
        with self._request(method, path, body) as response:
            return _decode(_read(response), kind)

    @contextlib.contextmanager
    def _request(self, method: str, path: str, body: Any) -> Iterator[httpx.Response]:
        with _translating(self.address):
            content = None if body is None else msgspec.json.encode(body)
            headers = {"Content-Type": "application/json"}
            with self._http.stream(method, path, content=content, headers=headers) as response:
                if response.status_code != httpx.codes.OK:
                    raise _error(response.status_code, _decode(_read(response), _Refusal).error)
                yield response


# ---- the wire


class _CheckedTransport(httpx.HTTPTransport):
    """Connections whose other end was looked at before the first byte goes out."""

    def __init__(self, unix_socket: str | None) -> None:
        super().__init__(uds=unix_socket)
        self._pool = httpcore.ConnectionPool(uds=unix_socket, network_backend=_CheckedBackend())


class _CheckedBackend(httpcore.SyncBackend):
    def connect_tcp(self, *where: Any, **how: Any) -> httpcore.NetworkStream:
        return _checked(super().connect_tcp(*where, **how))

    def connect_unix_socket(self, *where: Any, **how: Any) -> httpcore.NetworkStream:
        return _checked(super().connect_unix_socket(*where, **how))


def _checked(stream: httpcore.NetworkStream) -> httpcore.NetworkStream:
    try:
        check_server(stream.get_extra_info("socket"))
    except BaseException:
        stream.close()
        raise
    return stream


@contextlib.contextmanager
def _translating(address: Address) -> Iterator[None]:
    """Turn the HTTP library's errors into ours."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout):
        raise NoServerError(
            f"No server answers at {address}.",
            hint="Start one with `flexserve serve`, or name its address with --host and --port.",
        ) from None
    except httpx.TimeoutException:
        raise PeerError(f"The server at {address} is silent.", hint="See its log; restart it.") from None
    except httpx.HTTPError:
        raise PeerError(f"The server at {address} went away.", hint="See its log.") from None
    except (httpx.InvalidURL, UnicodeError):
        raise CallerError(f"{address} is not an address.", hint="Check --host and --port.") from None


class _Error(msgspec.Struct, frozen=True):
    message: str
    type: str
    code: str | None = None
    blame: str = ""
    hint: str = ""


class _Refusal(msgspec.Struct, frozen=True):
    error: _Error


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta
    finish_reason: str | None = None


class _Cached(msgspec.Struct, frozen=True):
    cached_tokens: int = 0


class _Times(msgspec.Struct, frozen=True):
    queue_ms: float = 0
    restore_ms: float = 0
    decrypt_ms: float = 0
    prefill_ms: float = 0
    decode_ms: float = 0
    ttft_ms: float = 0
    restored_bytes: int = 0
    npu_products: int = 0


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _Cached = _Cached()
    timings: _Times = _Times()


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] = msgspec.field(default_factory=list)
    usage: _Usage | None = None
    error: _Error | None = None


def _sampling(sampling: Sampling) -> dict[str, Any]:
    wanted = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "stop": sampling.stop or None,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _answer(response: httpx.Response) -> Iterator[str | Thought | Ending]:
    reason, usage = "", None
    for data in _events(response):
        if data == b"[DONE]":
            break
        chunk = _decode(data, _Chunk)
        if chunk.error is not None:
            raise _error(response.status_code, chunk.error)
        usage = chunk.usage or usage
        for choice in chunk.choices:
            reason = choice.finish_reason or reason
            if choice.delta.reasoning_content:
                yield Thought(choice.delta.reasoning_content)
            if choice.delta.content:
                yield choice.delta.content
    if usage is None:
        raise PeerError("The server broke the answer off.", hint="See its log.")
    yield _ending(reason, usage)


def _ending(reason: str, usage: _Usage) -> Ending:
    times = usage.timings
    return Ending(
        reason,
        Usage(usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens_details.cached_tokens),
        Timings(
            queue=times.queue_ms,
            restore=times.restore_ms,
            decrypt=times.decrypt_ms,
            prefill=times.prefill_ms,
            decode=times.decode_ms,
            ttft=times.ttft_ms,
            restored_bytes=times.restored_bytes,
            npu_products=times.npu_products,
        ),
    )


def _events(response: httpx.Response) -> Iterator[bytes]:
    """Yield the data of each event of a stream; comments (pings) are skipped."""
    rest = b""
    for piece in response.iter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > MAX_EVENT:
            raise _not_ours()
        for line in lines:
            if line.startswith(b"data: "):
                yield line[6:].rstrip(b"\r")


def _read(response: httpx.Response) -> bytes:
    body = bytearray()
    for piece in response.iter_bytes():
        body += piece
        if len(body) > MAX_BODY:
            raise _not_ours()
    return bytes(body)


def _decode(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise _not_ours() from None


def _not_ours() -> PeerError:
    return PeerError(
        "What listens there does not answer as FlexServe does.",
        hint="Choose the server's own address with --host, --port or --unix-socket. `flexserve connect` "
        "answers for models only, not for their memory.",
        code="not_flexserve",
    )


def _error(status: int, error: _Error) -> FlexServeError:
    """Return the server's error as its own type again, with its hint apart from its message."""
    if status == 401:  # its words are for programs: they name headers
        return CallerError(
            "This server wants one of its API keys.",
            hint="Set FLEXSERVE_API_KEY to one.",
            code="invalid_api_key",
        )
    known = {blame.value: blame for blame in Blame}
    blame = known.get(error.blame, Blame.BUG)
    message = error.message.removesuffix(error.hint).rstrip() or error.message
    return rebuild(blame, error.code or f"http_{status}", message, error.hint)
