"""Web pages from elsewhere: only those of an allowed origin, and only by the names that the server has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from flexserve.errors import CallerError
from flexserve.normal import main
from flexserve.normal.api.admission import Admission
from flexserve.normal.api.app import create_app
from flexserve.normal.api.cors import Origins
from flexserve.normal.api.keys import Key, Keys
from flexserve.normal.world import World
from flexserve.protocol.launch import SecureOptions

pytestmark = pytest.mark.anyio
APP = "https://app.example"
KEY = "sk-the-only-key"


@pytest.fixture
async def opened(world: World) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(
        world, Admission(keys=Keys([Key.of("mine", KEY)]), origins=Origins([APP, "http://localhost:3000"]))
    )
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


@pytest.mark.parametrize("origin", [APP, "http://localhost:3000"])
async def test_a_page_of_an_allowed_origin_asks_and_reads_with_a_key(
    opened: httpx.AsyncClient, origin: str
) -> None:
    question = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    may = await opened.options("/v1/chat/completions", headers=question)
    assert may.status_code == 204
    assert may.headers["access-control-allow-origin"] == origin
    assert may.headers["access-control-allow-headers"] == "authorization,content-type"
    assert may.headers["vary"] == "Origin"
    answer = await opened.get("/v1/models", headers={"Origin": origin, "Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    refusal = await opened.get("/v1/models", headers={"Origin": origin})
    assert refusal.status_code == 401
    assert refusal.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize("origin", ["https://evil.example", "http://app.example", f"{APP}:8443", "null"])
async def test_any_other_page_learns_nothing(opened: httpx.AsyncClient, origin: str) -> None:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST", "Authorization": f"Bearer {KEY}"}
    for response in (
        await opened.options("/v1/models", headers=headers),
        await opened.get("/v1/models", headers=headers),
    ):
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers


async def test_an_allowed_page_has_to_call_the_server_by_its_name_too(opened: httpx.AsyncClient) -> None:
    headers = {"Origin": APP, "Host": "rebound.example", "Authorization": f"Bearer {KEY}"}
    assert (await opened.get("/v1/models", headers=headers)).status_code == 403


async def test_options_without_a_question_wants_a_key(opened: httpx.AsyncClient) -> None:
    assert (await opened.options("/v1/models", headers={"Origin": APP})).status_code == 401


@pytest.mark.parametrize(
    "origin",
    ["app.example", "https://", "https://app.example/", "https://a@b.example", "null", "https://x:y"],
)
def test_what_no_browser_sends_is_no_origin(origin: str) -> None:
    with pytest.raises(CallerError):
        Origins([origin])


def test_all_pages_are_let_in_only_with_keys(tmp_path: Path) -> None:
    options = main.ServeOptions(SecureOptions(tmp_path, tmp_path / "key", "plain"), allowed_origins=["*"])
    with pytest.raises(CallerError) as caught:
        main.serve(options)
    assert caught.value.code == "keys_needed"
    assert Origins(["*"]).admit("https://anything.example")
