"""Every route of every API wants a key, refuses other pages, bounds bodies, and says no in its form."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import structlog
from fastapi.routing import APIRoute

from flexserve.normal.api import envelope, llama_server
from flexserve.normal.api.admission import Admission
from flexserve.normal.api.app import FACADES, create_app
from flexserve.normal.api.keys import Key, Keys
from flexserve.normal.world import World
from flexserve.testing.scripted_link import ScriptedLink

pytestmark = pytest.mark.anyio
KEY = "sk-the-only-key"
OPEN = ("/health", "/v1/health", "/", "/page/{name}")


def routes() -> list[tuple[str, str]]:
    """All routes of all APIs."""
    found = [route for facade in FACADES for route in facade.router.routes if isinstance(route, APIRoute)]
    return sorted((method, route.path) for route in found for method in route.methods or ())


ROUTES = routes()
WITH_BODY = [(method, path) for method, path in ROUTES if method in ("POST", "PUT", "DELETE")]
GUARDED = [(method, path) for method, path in ROUTES if path not in OPEN]


def said(path: str, body: Any) -> str:
    """Return the message of an error, having checked that it has the form of the API at `path`."""
    if path.startswith("/api/"):
        assert set(body) == {"error"}
        return str(body["error"])
    if path.startswith("/v1/messages"):
        assert set(body) == {"type", "error"}
        assert body["type"] == "error"
        assert set(body["error"]) == {"type", "message"}
    elif any(path == known or path.startswith(f"{known}/") for known in llama_server.ERROR_FORMS):
        assert set(body["error"]) == {"code", "message", "type"}
        assert body["error"]["code"] >= 400
    else:
        assert set(body["error"]) == {"message", "type", "param", "code", "blame", "hint"}
    return str(body["error"]["message"])


@pytest.fixture
async def guarded(world: World) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(world, Admission(keys=Keys([Key.of("mine", KEY)]))))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


def test_all_apis_are_here() -> None:
    paths = {path for _, path in ROUTES}
    assert {"/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat", "/completion"} <= paths
    assert len(ROUTES) > 40


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_it_wants_a_key(guarded: httpx.AsyncClient, link: ScriptedLink, method: str, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer sk-another-key"}, {"X-Api-Key": "sk-another-key"}):
        response = await guarded.request(method, path, headers=headers, content=b"{}")
        assert response.status_code == 401
        if method != "HEAD":
            assert "API key" in said(path, response.json())
    for headers in ({"Authorization": f"Bearer {KEY}"}, {"X-Api-Key": KEY}):
        assert (await guarded.request(method, path, headers=headers)).status_code != 401
    assert all(type(message).__name__ != "Generate" for message in link.scripted.received)


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_it_refuses_other_names_and_pages_from_elsewhere(
    guarded: httpx.AsyncClient, method: str, path: str
) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        headers["Authorization"] = f"Bearer {KEY}"
        response = await guarded.request(method, path, headers=headers, content=b"{}")
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers
        if method != "HEAD":
            assert said(path, response.json())


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
async def test_it_bounds_the_body(guarded: httpx.AsyncClient, method: str, path: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Length": str(envelope.MAX_BODY + 1)}
    response = await guarded.request(method, path, headers=headers, content=b"")
    assert response.status_code == 413
    assert "larger than" in said(path, response.json())


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
async def test_a_body_that_is_none_is_refused_and_appears_in_no_log(
    guarded: httpx.AsyncClient, method: str, path: str
) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    with structlog.testing.capture_logs() as logs:
        response = await guarded.request(method, path, headers=headers, content=b'{"canary": ')
    assert 400 <= response.status_code < 500
    assert said(path, response.json())
    assert "canary" not in json.dumps(logs) + response.text
    assert KEY not in json.dumps(logs)


@pytest.mark.parametrize("path", ["/api/nothing", "/v1/messages/nothing", "/nothing", "/v1/nothing"])
async def test_a_route_that_is_not_there_is_missed_in_the_form_of_its_api(
    client: httpx.AsyncClient, path: str
) -> None:
    response = await client.post(path, json={})
    assert response.status_code == 404
    assert said(path, response.json())
