"""What a stream tells of its own pace, where the client asks as it asks llama-server."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from flexserve.normal.api.pace import Pace
from flexserve.protocol.answers import Delta, Started
from flexserve.protocol.requests import Generate
from flexserve.testing.script import Behaviour, Script
from flexserve.testing.scripted_link import ScriptedLink
from flexserve.testing.scripted_world import CACHED_TOKENS, PROMPT_TOKENS

pytestmark = pytest.mark.anyio
USER = [{"role": "user", "content": "Hi"}]
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": USER},
    "/v1/completions": {"prompt": "Hi"},
    "/completion": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
}
EACH = pytest.mark.parametrize("path", list(ROUTES))


@pytest.fixture
def link() -> ScriptedLink:
    return ScriptedLink(Script(models={"tiny": Behaviour()}))


async def chunks(client: httpx.AsyncClient, path: str, **more: Any) -> list[dict[str, Any]]:
    response = await client.post(path, json={**ROUTES[path], "stream": True, **more})
    assert response.status_code == 200
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@EACH
async def test_the_progress_of_a_prompt_is_told_from_what_is_cached_to_all(
    client: httpx.AsyncClient, link: ScriptedLink, path: str
) -> None:
    told = [
        one["prompt_progress"]
        for one in await chunks(client, path, return_progress=True)
        if "prompt_progress" in one
    ]
    assert [(one["total"], one["cache"], one["processed"]) for one in told] == [
        (PROMPT_TOKENS, CACHED_TOKENS, processed)
        for processed in (CACHED_TOKENS, CACHED_TOKENS + 1, PROMPT_TOKENS)
    ]
    assert all(one["time_ms"] >= 0 for one in told)
    assert link.scripted.last(Generate).progress


@EACH
async def test_pieces_of_text_have_timings_where_they_are_asked_for(
    client: httpx.AsyncClient, path: str
) -> None:
    *said, end = [one for one in await chunks(client, path, timings_per_token=True) if "timings" in one]
    counts = [one["timings"]["predicted_n"] for one in said]
    assert counts == [1, 2, 3, 4]
    assert all(one["timings"]["cache_n"] == CACHED_TOKENS for one in said)
    assert end["timings"]["predicted_n"] == 4


@EACH
async def test_the_progress_of_a_prompt_has_timings_where_both_are_asked_for(
    client: httpx.AsyncClient, path: str
) -> None:
    found = await chunks(client, path, return_progress=True, timings_per_token=True)
    first, *rest = [one["timings"] for one in found if "prompt_progress" in one]
    assert (first["prompt_n"], first["prompt_ms"], first["predicted_n"]) == (0, 0.0, 0)
    assert [one["prompt_n"] for one in rest] == [1, PROMPT_TOKENS - CACHED_TOKENS]
    assert all(one["prompt_ms"] > 0 for one in rest)


@EACH
async def test_nobody_who_does_not_ask_is_told(
    client: httpx.AsyncClient, link: ScriptedLink, path: str
) -> None:
    *said, _end = await chunks(client, path, return_progress=False)
    assert not any("timings" in one or "prompt_progress" in one for one in said)
    assert not link.scripted.last(Generate).progress


async def test_an_answer_in_one_piece_has_no_progress(client: httpx.AsyncClient, link: ScriptedLink) -> None:
    body = {"messages": USER, "return_progress": True, "timings_per_token": True}
    answer = (await client.post("/v1/chat/completions", json=body)).json()
    assert "prompt_progress" not in answer
    assert not link.scripted.last(Generate).progress


async def test_each_of_several_answers_has_a_pace_of_its_own(client: httpx.AsyncClient) -> None:
    found = await chunks(client, "/v1/chat/completions", n=2, return_progress=True, timings_per_token=True)
    progress = [one["choices"][0]["index"] for one in found if "prompt_progress" in one]
    assert progress == [0, 0, 0, 1, 1, 1]


async def test_routes_of_others_refuse_it(client: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "max_tokens": 4, "messages": USER, "return_progress": True}
    response = await client.post("/v1/messages", json=body)
    assert response.status_code == 400
    assert "return_progress" in response.json()["error"]["message"]


def test_the_pace_is_that_of_the_steps_behind_the_first_token() -> None:
    moments = iter([0.0, 1.0, 3.0, 3.5, 4.0])
    pace = Pace(progress=False, per_token=True, clock=lambda: next(moments))
    pace.began(Started(1, 12, cached_tokens=2))
    assert pace.timings() == {}
    for _ in range(3):
        pace.took(Delta(1, "x", 1))
    pace.took(Delta(1, "held back", 0))
    timings = pace.timings()["timings"]
    assert (timings["prompt_n"], timings["prompt_ms"], timings["prompt_per_second"]) == (10, 2000, 5)
    assert (timings["predicted_n"], timings["predicted_ms"], timings["predicted_per_second"]) == (3, 1000, 2)
