"""A model may be asked for by the name that ollama's clients have for it, on every API."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from flexserve.protocol.requests import Generate
from flexserve.testing.script import Behaviour, Script
from flexserve.testing.scripted_link import ScriptedLink

pytestmark = pytest.mark.anyio
USER = [{"role": "user", "content": "Hi"}]
NAMES = {"tiny:latest": "tiny", "small:1b": "small-1b", "small-1b": "small-1b", "small-1b:latest": "small-1b"}


@pytest.fixture
def link() -> ScriptedLink:
    return ScriptedLink(Script(models={"tiny": Behaviour(), "small-1b": Behaviour()}))


@pytest.mark.parametrize(("asked", "meant"), NAMES.items())
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": USER}),
        ("/v1/responses", {"input": "Hi"}),
        ("/v1/messages", {"messages": USER, "max_tokens": 5}),
        ("/api/generate", {"prompt": "Hi"}),
        ("/completion", {"prompt": "Hi"}),
    ],
)
async def test_a_model_is_found_by_ollamas_name(
    client: httpx.AsyncClient, link: ScriptedLink, asked: str, meant: str, path: str, body: dict[str, Any]
) -> None:
    body = {"model": asked, "flexserve": {"next_model": asked}, **body}
    assert (await client.post(path, json=body)).status_code == 200
    crossed = link.scripted.last(Generate)
    assert (crossed.model, crossed.next_model) == (meant, meant)


@pytest.mark.parametrize(("asked", "meant"), NAMES.items())
async def test_a_model_is_shown_by_ollamas_name(client: httpx.AsyncClient, asked: str, meant: str) -> None:
    assert (await client.get(f"/v1/models/{asked}")).json()["id"] == meant
    assert (await client.get("/props", params={"model": asked})).json()["model_alias"] == meant
    for name in ("model", "name"):
        assert (await client.post("/api/show", json={name: asked})).status_code == 200


async def test_another_tag_is_another_model(client: httpx.AsyncClient) -> None:
    response = await client.post("/api/chat", json={"model": "tiny:8b", "messages": USER})
    assert response.status_code == 404
