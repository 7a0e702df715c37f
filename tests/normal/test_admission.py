"""Keys with names, rights and bounds, at the door of the server; and what is written down of who asked."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from flexserve.errors import CallerError
from flexserve.normal.api import attestation, sealed
from flexserve.normal.api.admission import Admission
from flexserve.normal.api.app import FACADES, FOR_MODELS, create_app
from flexserve.normal.api.keys import Key, Keys, Right, digest_of
from flexserve.normal.api.rights import needed
from flexserve.normal.audit_file import AuditFile
from flexserve.normal.quota import Rate
from flexserve.normal.world import World

pytestmark = pytest.mark.anyio
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "a secret question"}]}


def key(name: str, *rights: Right, requests: str | None = None, tokens: str | None = None) -> Key:
    rates = [None if text is None else Rate.parse(text) for text in (requests, tokens)]
    return Key(name, digest_of(f"sk-of-{name}".encode()), frozenset(rights), *rates)


def headers(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer sk-of-{name}"}


@contextlib.asynccontextmanager
async def serving(world: World, admission: Admission) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(world, admission))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


def routes(facades: Any) -> list[tuple[str, str]]:
    found = [route for facade in facades for route in facade.router.routes if isinstance(route, APIRoute)]
    return [(method, route.path) for route in found for method in route.methods or ()]


def test_what_is_posted_to_a_model_asks_and_what_changes_the_server_never_does() -> None:
    asking = routes((*FOR_MODELS, attestation, sealed))
    assert {needed(*route) for route in asking if route[0] == "POST"} == {Right.ASK}
    others = [route for route in routes(FACADES) if route not in asking and route[0] not in ("GET", "HEAD")]
    assert {route: needed(*route) for route in others} == {
        ("POST", "/recall"): Right.RECALL,
        ("POST", "/memory/need"): Right.RECALL,
        ("POST", "/memory/unload"): Right.RECALL,
        ("PUT", "/memory/cap"): Right.ADMIN,
        ("PUT", "/memory/pins"): Right.ADMIN,
        ("PUT", "/models/{name:path}/options"): Right.ADMIN,
    }


async def test_each_right_opens_what_it_is_for(world: World) -> None:
    keys = Keys([key(right.value, right) for right in Right])
    allowed: dict[str, list[bool]] = {}
    async with serving(world, Admission(keys=keys)) as client:
        for right in Right:
            answers = [
                await client.get("/models", headers=headers(right.value)),
                await client.post("/v1/chat/completions", json=ASK, headers=headers(right.value)),
                await client.post("/recall", json={"bytes": 0}, headers=headers(right.value)),
                await client.put("/memory/cap", json={"size": None}, headers=headers(right.value)),
            ]
            refused = [answer for answer in answers if answer.status_code == 403]
            assert {answer.json()["error"]["code"] for answer in refused} <= {"right_missing"}
            allowed[right.value] = [answer.status_code == 200 for answer in answers]
    assert allowed == {
        "read": [True, False, False, False],
        "ask": [True, True, False, False],
        "recall": [True, False, True, False],
        "admin": [True, True, True, True],
    }


async def test_a_sealed_request_needs_the_right_to_ask_and_counts(world: World) -> None:
    keys = Keys([key("reader", Right.READ), key("asker", Right.ASK, requests="1/hour")])
    async with serving(world, Admission(keys=keys)) as client:
        assert (await client.post("/v1/sealed", content=b"x", headers=headers("reader"))).status_code == 403
        statuses = [
            (await client.post("/v1/sealed", content=b"x", headers=headers("asker"))).status_code
            for _ in range(2)
        ]
    assert statuses == [400, 429]


async def test_more_requests_than_a_key_may_send_are_429_with_the_time_to_wait(world: World) -> None:
    keys = Keys([key("bob", Right.ASK, requests="2/minute"), key("ann", Right.ASK)])
    async with serving(world, Admission(keys=keys)) as client:
        for path in ("/v1/chat/completions", "/api/chat"):
            assert (await client.post(path, json=ASK, headers=headers("bob"))).status_code == 200
        refusal = await client.post("/v1/messages", json=ASK, headers=headers("bob"))
        assert refusal.status_code == 429
        assert 1 <= int(refusal.headers["Retry-After"]) <= 30
        assert refusal.json()["error"]["type"] == "rate_limit_error"
        assert (await client.get("/v1/models", headers=headers("bob"))).status_code == 200
        assert (
            await client.post("/v1/chat/completions", json=ASK, headers=headers("ann"))
        ).status_code == 200


@pytest.mark.parametrize("body", [ASK, {**ASK, "stream": True}, {"model": "tiny", "input": "a text"}])
async def test_the_tokens_of_prompts_and_answers_count(world: World, body: dict[str, Any]) -> None:
    path = "/v1/embeddings" if "input" in body else "/v1/chat/completions"
    async with serving(world, Admission(keys=Keys([key("bob", Right.ASK, tokens="1/hour")]))) as client:
        first = await client.post(path, json=body, headers=headers("bob"))
        second = await client.post(path, json=body, headers=headers("bob"))
    assert (first.status_code, second.status_code) == (200, 429)
    assert int(second.headers["Retry-After"]) > 3600


async def test_what_was_asked_for_counts_on_when_keys_are_read_again(world: World) -> None:
    bob = key("bob", Right.ASK, requests="1/hour")
    admission = Admission(keys=Keys([bob]))
    async with serving(world, admission) as client:
        await client.post("/v1/chat/completions", json=ASK, headers=headers("bob"))
        admission.become(Admission(keys=Keys([bob, key("ann", Right.ASK)])))
        assert (await client.post("/api/chat", json=ASK, headers=headers("bob"))).status_code == 429
        assert (await client.post("/api/chat", json=ASK, headers=headers("ann"))).status_code == 200
        admission.become(Admission(keys=Keys([key("ann", Right.ASK)])))
        assert (await client.post("/api/chat", json=ASK, headers=headers("bob"))).status_code == 401


async def test_the_audit_log_says_who_asked_which_model_and_what_came_of_it(
    world: World, tmp_path: Path
) -> None:
    path = tmp_path / "audit"
    keys = Keys([key("bob", Right.ASK, requests="1/hour")])
    async with serving(world, Admission(keys=keys, audit=AuditFile(path))) as client:
        await client.post("/v1/chat/completions", json=ASK, headers=headers("bob"))
        await client.post("/v1/chat/completions", json=ASK, headers=headers("bob"))
        await client.post("/recall", headers=headers("bob"))
        await client.get("/models", headers=headers("nobody"))
        await client.get("/health")
        await client.get("/metrics", headers=headers("bob"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["status"], line.get("key")) for line in lines] == [
        (200, "bob"),
        (429, "bob"),
        (403, "bob"),
        (401, None),
    ]
    assert lines[0]["model"] == "tiny"
    assert lines[0]["peer"] == "127.0.0.1"
    assert lines[0]["completion_tokens"] > 0
    assert "secret" not in path.read_text()
    assert "sk-" not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_audit_log_that_cannot_be_written_is_refused_before_anything_is_served(tmp_path: Path) -> None:
    with pytest.raises(CallerError, match="audit log"):
        AuditFile(tmp_path / "nowhere" / "audit")


async def test_the_log_names_the_key_and_has_no_line_for_a_probe(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    from flexserve.normal import journal

    journal.configure(level="info", json=True)
    async with serving(world, Admission(keys=Keys([key("bob", Right.ASK)]))) as client:
        await client.get("/health")
        await client.get("/metrics", headers=headers("bob"))
        await client.get("/metrics")
        await client.get("/v1/models", headers=headers("bob"))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    told = [(line["route"], line["status"], line.get("key")) for line in lines if line["event"] == "request"]
    assert told == [(None, 401, None), ("/v1/models", 200, "bob")]
