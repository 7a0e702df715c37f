"""The server around completions, over a scripted world: models, recalls, health, labels, limits, logs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
import structlog

from flexserve.errors import (
    Blame,
    CancelledError,
    GrantRefusedError,
    InternalError,
    MonitorError,
    QueueFullError,
    StoredDataError,
    UnknownModelError,
    rebuild,
)
from flexserve.normal import supervisor
from flexserve.normal.api import envelope
from flexserve.normal.api.admission import LOOPBACK_NAMES, Admission
from flexserve.normal.api.app import create_app
from flexserve.normal.api.errors import from_error
from flexserve.normal.supervisor import WorldState
from flexserve.normal.world import World
from flexserve.protocol.memory import Recall
from flexserve.testing.scripted_link import AdjustableMemory, ScriptedLink
from flexserve.units import GIB, MIB

pytestmark = pytest.mark.anyio
Until = Callable[[Callable[[], bool]], Awaitable[None]]
USER = [{"role": "user", "content": "a very secret prompt"}]


def chat(model: str = "tiny", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": USER, **more}


async def test_a_model_is_found_by_its_name(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models/tiny")).json()["id"] == "tiny"
    missing = await client.get("/v1/models/none/such")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_model_states_show_our_count_and_the_oses(
    client: httpx.AsyncClient, memory: AdjustableMemory
) -> None:
    memory.resident = 123 * MIB
    body = (await client.get("/models")).json()
    tiny = next(model for model in body["models"] if model["name"] == "tiny")
    assert (tiny["state"], tiny["resident"], tiny["resident_fraction"]) == ("partial", 250, 0.25)
    assert body["os"]["secure_rss"] == 123 * MIB
    assert body["os"]["available"] == 48 * GIB
    assert body["protection"]["protected"] is False


async def test_a_recall_answers_with_the_claim_and_the_measurement(
    client: httpx.AsyncClient, link: ScriptedLink
) -> None:
    body = (await client.post("/recall", json={"bytes": 5, "deadline_ms": 250})).json()
    assert link.scripted.last(Recall).deadline == 250
    assert body["asked"] == 5
    assert body["returned"] == 0
    assert body["measured"]["before"]["available"] == 48 * GIB
    assert set(body["measured"]) == {"freed", "before", "after"}
    everything = await client.post("/recall")
    assert everything.json()["asked"] is None
    decisions = (await client.get("/memory/decisions")).json()["decisions"]
    assert [decision["kind"] for decision in decisions] == ["recall", "recall"]


async def test_health_sees_an_engine_that_stands_still(client: httpx.AsyncClient) -> None:
    request = asyncio.create_task(
        client.post("/v1/completions", json={"model": "still", "prompt": "x", "stream": False})
    )
    codes: list[int] = []

    async def look() -> None:
        while not codes or codes[-1] != 503:
            codes.append((await client.get("/health")).status_code)
            await asyncio.sleep(0.01)

    await asyncio.wait_for(look(), 60)
    health = (await client.get("/health")).json()
    assert health["status"] == "still"
    assert "has not moved for 120 seconds" in health["error"]["message"]
    request.cancel()


@pytest.mark.parametrize("body", [{"bytes": -1}, {"bytes": 1.5}, {"deadline_ms": 1e9}, [], "all"])
async def test_a_wrong_recall_is_a_400(client: httpx.AsyncClient, body: Any) -> None:
    assert (await client.post("/recall", json=body)).status_code == 400


async def test_health_says_ok_and_503_while_the_world_is_down(
    client: httpx.AsyncClient, world: World, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_wait_before", lambda _: 3600.0)
    healthy = await client.get("/health")
    assert healthy.status_code == 200
    assert healthy.json()["status"] == "ok"
    assert healthy.json()["protection"]["name"] == "scripted"
    world.kill()
    await until(lambda: world.state is not WorldState.READY)
    down = await client.get("/health")
    assert down.status_code == 503
    assert down.json()["status"] == "restarting"
    assert down.json()["error"]["type"] == "unavailable_error"
    assert "retry-after" in down.headers


async def test_polling_asks_nothing_of_a_model(client: httpx.AsyncClient, link: ScriptedLink) -> None:
    for path in ("/health", "/models", "/v1/models", "/v1/models/tiny"):
        await client.get(path)
    assert {type(message).__name__ for message in link.scripted.received} == {"Hello", "Query"}


async def test_every_answer_is_labelled(client: httpx.AsyncClient) -> None:
    for response in (
        await client.get("/health"),
        await client.get("/nowhere"),
        await client.post("/v1/completions", content=b"{"),
        await client.post("/v1/chat/completions", json=chat(stream=True)),
        await client.get("/health", headers={"Host": "evil.example"}),
    ):
        assert response.headers["x-flexserve-protection"] == "scripted"
        assert response.headers["x-request-id"].startswith("req-")
        assert response.headers["request-id"] == response.headers["x-request-id"]
        assert response.headers["date"].endswith("GMT")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "evil.example"}, "host_not_allowed"),
        ({"Host": ""}, "host_not_allowed"),
        ({"Host": "[::1"}, "host_not_allowed"),
        ({"Origin": "https://evil.example"}, "origin_not_allowed"),
        ({"Origin": "null"}, "origin_not_allowed"),
    ],
)
async def test_other_names_and_other_pages_are_refused(
    client: httpx.AsyncClient, headers: dict[str, str], code: str
) -> None:
    response = await client.get("/health", headers=headers)
    assert response.status_code == 403
    assert response.json()["error"]["code"] == code
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("host", ["localhost:8484", "127.0.0.1", "[::1]:1", "LOCALHOST"])
async def test_loopback_names_are_accepted(client: httpx.AsyncClient, host: str) -> None:
    assert (await client.get("/health", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    ("host", "headers", "status"),
    [
        ("models.example", {}, 403),
        ("proxy.example", {}, 200),
        ("PROXY.example:8443", {}, 200),
        ("proxy.example", {"Origin": "https://proxy.example"}, 200),
        ("proxy.example:8443", {"Origin": "https://proxy.example:8443"}, 200),
        ("proxy.example:8443", {"Origin": "https://proxy.example"}, 403),
        ("proxy.example", {"Origin": "https://evil.example"}, 403),
        ("localhost:7077", {"Origin": "http://localhost:7077"}, 200),
        ("localhost:7077", {"Origin": "http://localhost:3000"}, 403),
        ("localhost:7077", {"Origin": "http://localhost:7077.evil.example"}, 403),
        ("localhost:7077", {"Origin": "http://localhost:port"}, 403),
        ("localhost", {"Origin": "http://localhost:80"}, 200),
    ],
)
async def test_on_every_address_a_server_is_called_by_its_names_and_pages_are_its_own(
    world: World, host: str, headers: dict[str, str], status: int
) -> None:
    app = create_app(world, Admission(hosts=[*LOOPBACK_NAMES, "proxy.example"]))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://192.0.2.1") as client:
        assert (await client.get("/health", headers={"Host": host, **headers})).status_code == status


async def test_the_address_that_was_connected_to_is_a_name(world: World) -> None:
    transport = httpx.ASGITransport(create_app(world))
    async with httpx.AsyncClient(transport=transport, base_url="http://192.0.2.1") as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/health", headers={"Host": "192.0.2.2"})).status_code == 403


async def test_a_body_that_announces_too_much_is_a_413(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/completions", content=b"", headers={"Content-Length": str(1 << 40)})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


async def test_a_body_that_grows_too_large_is_a_413(client: httpx.AsyncClient) -> None:
    async def flood() -> AsyncIterator[bytes]:
        for _ in range(envelope.MAX_BODY // MIB + 1):
            yield b" " * MIB

    response = await client.post(
        "/v1/completions", content=flood(), headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 413


async def test_a_body_that_never_arrives_is_a_408(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envelope, "BODY_TIMEOUT", 0.01)

    async def stall() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    response = await client.post("/v1/completions", content=stall())
    assert response.status_code == 408


async def test_an_unforeseen_error_is_a_plain_500_and_its_text_stays_inside(
    client: httpx.AsyncClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def explode(*_: object) -> None:
        raise RuntimeError("a very secret prompt")

    monkeypatch.setattr(world, "generate", explode)
    with structlog.testing.capture_logs() as logs:
        response = await client.post("/v1/chat/completions", json=chat())
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "api_error"
    assert "secret" not in response.text + json.dumps(logs)
    assert any(entry["event"] == "unforeseen" for entry in logs)


async def test_an_unforeseen_error_is_placed_in_our_code_though_a_library_raised_it(
    client: httpx.AsyncClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.audit_log, "lines", lambda: [object()])
    with structlog.testing.capture_logs() as logs:
        assert (await client.get("/memory/decisions")).status_code == 500
    (entry,) = [entry for entry in logs if entry["event"] == "unforeseen"]
    assert entry["at"].startswith("memory.py:")


async def test_logs_have_counts_and_no_text(client: httpx.AsyncClient) -> None:
    with structlog.testing.capture_logs() as logs:
        await client.post("/v1/chat/completions", json=chat(stream=True))
        await client.post("/v1/chat/completions", json=chat("a very secret model"))
        await client.get("/v1/models/a very secret model?key=secret")
    lines = [entry for entry in logs if entry["event"] == "request"]
    assert lines[0]["model"] == "tiny"
    assert (lines[0]["status"], lines[0]["prompt_tokens"], lines[0]["completion_tokens"]) == (200, 7, 4)
    assert lines[1]["error"] == "model_not_found"
    assert "secret" not in json.dumps(logs)
    assert "Hello" not in json.dumps(logs)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (UnknownModelError("x"), 404, "invalid_request_error"),
        (QueueFullError("x"), 429, "rate_limit_error"),
        (CancelledError("x"), 503, "unavailable_error"),
        (GrantRefusedError("x"), 503, "unavailable_error"),
        (rebuild(Blame.CALLER, "context_full", "x", ""), 400, "invalid_request_error"),
        (StoredDataError("x"), 500, "stored_data_error"),
        (MonitorError("x"), 500, "api_error"),
        (InternalError("x"), 500, "api_error"),
    ],
)
def test_blame_decides_the_status(error: Any, status: int, kind: str) -> None:
    answer = from_error(error)
    assert (answer.status, answer.type) == (status, kind)
    assert (answer.retry_after is not None) == (status in (429, 503))
    assert answer.blame == error.blame.value
