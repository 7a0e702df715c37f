"""The client against servers that answer wrongly, break off or never end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from servers import ScriptedServer, Stranger, silent_port

from flexserve import settings
from flexserve.errors import (
    CallerError,
    FlexServeError,
    InternalError,
    MonitorError,
    NormalWorldError,
    PeerError,
    QueueFullError,
    StoredDataError,
    UnknownModelError,
)
from flexserve.normal import client as client_module
from flexserve.normal.address import Address, NoServerError
from flexserve.normal.client import Client
from flexserve.normal.reports import Ending
from flexserve.protocol.answer_parts import Thought
from flexserve.protocol.prompts import ChatMessage
from flexserve.protocol.sampling import Sampling

USAGE = {"prompt_tokens": 1, "completion_tokens": 1}


def ask(port: int) -> list[str | Thought | Ending]:
    with Client(Address("127.0.0.1", port)) as client:
        return list(client.ask("tiny", [ChatMessage("user", "my secret")], Sampling()))


def stream(*events: Any, ending: str = "data: [DONE]\n\n") -> bytes:
    lines = [event if isinstance(event, str) else f"data: {json.dumps(event)}\n\n" for event in events]
    return ("".join(lines) + ending).encode()


def delta(text: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}, "finish_reason": None}]}


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_EVENT", 1000)
    monkeypatch.setattr(client_module, "MAX_BODY", 1000)


def test_pings_and_unknown_fields_are_skipped() -> None:
    answer = stream(": ping\n\n", {**delta("a"), "news": 1}, delta("b"), {"choices": [], "usage": USAGE})
    with Stranger(answer) as stranger:
        *pieces, ending = ask(stranger.port)
    assert pieces == ["a", "b"]
    assert isinstance(ending, Ending)
    assert ending.usage.prompt_tokens == 1


@pytest.mark.parametrize(
    "answer",
    [
        stream(delta("a"), ending=""),
        stream(delta("a")),
        stream("data: nonsense\n\n"),
        stream("data: []\n\n"),
        stream({"choices": [{"delta": {"content": 5}}]}),
        b"",
        b"\xff" * 100,
    ],
)
def test_an_answer_that_is_broken_is_the_servers_fault(answer: bytes) -> None:
    with Stranger(answer) as stranger, pytest.raises(PeerError) as failure:
        ask(stranger.port)
    assert "secret" not in str(failure.value)


def test_an_event_without_an_end_is_not_collected_for_ever(small_bounds: None) -> None:
    with Stranger(b"data: " + b"x" * 5000) as stranger, pytest.raises(PeerError):
        ask(stranger.port)


def test_a_body_without_an_end_is_not_collected_for_ever(small_bounds: None) -> None:
    with (
        Stranger(b" " * 5000) as stranger,
        Client(Address("127.0.0.1", stranger.port)) as client,
        pytest.raises(PeerError),
    ):
        client.states()


@pytest.mark.parametrize(
    ("status", "blame", "code", "error"),
    [
        (404, "caller", "model_not_found", UnknownModelError),
        (400, "caller", None, CallerError),
        (429, "caller", "queue_full", QueueFullError),
        (503, "normal_world", "memory_refused", NormalWorldError),
        (500, "stored_data", "stored_data_bad", StoredDataError),
        (500, "monitor", "monitor_refused", MonitorError),
        (500, "bug", "internal_error", InternalError),
        (500, "nobody's", None, InternalError),
    ],
)
def test_a_refusal_is_raised_as_its_own_type_with_its_hint(
    status: int, blame: str, code: str | None, error: type[FlexServeError]
) -> None:
    said = {"message": "No. Do otherwise.", "type": "x", "param": None, "code": code}
    body = {"error": {**said, "blame": blame, "hint": "Do otherwise."}}
    with Stranger(json.dumps(body).encode(), status) as stranger, pytest.raises(error) as refusal:
        ask(stranger.port)
    assert (refusal.value.message, refusal.value.hint) == ("No.", "Do otherwise.")


def test_an_error_in_a_stream_ends_it() -> None:
    body = {"error": {"message": "A chunk is forged.", "type": "x", "code": "bad", "blame": "stored_data"}}
    with Stranger(stream(delta("a"), body)) as stranger, pytest.raises(StoredDataError, match="forged"):
        ask(stranger.port)


@pytest.mark.parametrize("host", ["", "no such host", "a" * 300, "127.0.0.1/x", "[", "é" * 70])
def test_an_address_that_is_none_is_an_error_of_ours(host: str) -> None:
    with silent_port() as port, pytest.raises(FlexServeError), Client(Address(host, port)) as client:
        client.health()


def test_nobody_there_is_an_error_of_its_own() -> None:
    with (
        silent_port() as port,
        Client(Address("127.0.0.1", port)) as client,
        pytest.raises(NoServerError),
    ):
        client.health()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:7077"),
        ("0.0.0.0", "http://127.0.0.1:7077"),
        ("::", "http://[::1]:7077"),
        ("::1", "http://[::1]:7077"),
        ("box.lan", "http://box.lan:7077"),
    ],
)
def test_a_server_that_listens_everywhere_is_asked_here(host: str, url: str) -> None:
    assert Address(host, 7077).url == url


def test_leaving_an_answer_early_cancels_it(server: ScriptedServer) -> None:
    with Client(settings.load().address()) as client:
        pieces = client.ask("slow", [ChatMessage("user", "x")], Sampling())
        assert next(pieces) == "word "
        pieces.close()
    while not server.cancelled:
        pass
