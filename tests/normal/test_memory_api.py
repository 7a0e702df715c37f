"""The memory routes: a cap, room for others, pins, and the log."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from flexserve.protocol.memory import Pin
from flexserve.testing.scripted_link import AdjustableMemory, ScriptedLink
from flexserve.units import GIB, MIB

pytestmark = pytest.mark.anyio


async def send(client: httpx.AsyncClient, method: str, path: str, body: Any) -> httpx.Response:
    return await client.request(method, path, json=body)


async def test_the_state_of_memory_says_what_may_be_granted_and_why_not_more(
    client: httpx.AsyncClient,
) -> None:
    body = (await client.get("/memory")).json()
    assert (body["granted"], body["cap"], body["pins"]) == (0, None, [])
    assert body["budget"] == {
        "size": 46 * GIB,
        "bound": "level",
        "reason": "the rest is kept free for others",
    }
    assert body["counters"]["recalls"] == 0


async def test_the_state_of_memory_is_told_after_a_refusal_too(
    client: httpx.AsyncClient, memory: AdjustableMemory
) -> None:
    memory.available = 0
    ask = {"model": "hungry", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    await send(client, "POST", "/v1/chat/completions", ask)
    assert (await client.get("/memory")).json()["counters"]["refusals"] == {"level": 1}
    assert (await send(client, "PUT", "/memory/cap", {"size": None})).status_code == 200
    assert (await send(client, "PUT", "/memory/pins", {"models": ["tiny"]})).status_code == 200


async def test_a_cap_is_set_and_lifted(client: httpx.AsyncClient) -> None:
    assert (await send(client, "PUT", "/memory/cap", {"size": "2GiB"})).json()["cap"] == 2 * GIB
    budget = (await client.get("/memory")).json()["budget"]
    assert (budget["size"], budget["bound"]) == (2 * GIB, "cap")
    assert (await send(client, "PUT", "/memory/cap", {"size": None})).json()["cap"] is None


async def test_room_for_others_answers_with_what_the_os_counts(
    client: httpx.AsyncClient, memory: AdjustableMemory
) -> None:
    answer = (await send(client, "POST", "/memory/need", {"size": "512MiB", "hold_seconds": 5})).json()
    assert (answer["asked"], answer["satisfied"], answer["freed"]) == (512 * MIB, True, 0)
    assert answer["after"]["available"] == 48 * GIB
    memory.available = 0
    assert not (await send(client, "POST", "/memory/need", {"size": MIB})).json()["satisfied"]
    assert (await client.get("/memory")).json()["budget"]["bound"] == "reserved"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/memory/need", {}),
        ("POST", "/memory/need", {"size": "much"}),
        ("POST", "/memory/need", {"size": "9" * 400}),
        ("POST", "/memory/need", {"size": "65GiB"}),
        ("POST", "/memory/need", {"size": -1}),
        ("POST", "/memory/need", {"size": 1, "hold_seconds": 1e9}),
        ("POST", "/memory/need", {"size": 1, "deadline_ms": "soon"}),
        ("PUT", "/memory/cap", {}),
        ("PUT", "/memory/cap", {"size": True}),
        ("PUT", "/memory/pins", {"models": [""]}),
        ("PUT", "/memory/pins", {"models": ["x"] * 65}),
    ],
)
async def test_a_body_out_of_bounds_is_a_400(
    client: httpx.AsyncClient, method: str, path: str, body: Any
) -> None:
    assert (await send(client, method, path, body)).status_code == 400


async def test_pins_reach_the_secure_world_and_show_among_the_models(
    client: httpx.AsyncClient, link: ScriptedLink
) -> None:
    assert (await send(client, "PUT", "/memory/pins", {"models": ["tiny"]})).json() == {"pins": ["tiny"]}
    states = (await client.get("/models")).json()["models"]
    assert {state["name"] for state in states if state["pinned"]} == {"tiny"}
    assert [message.models for message in link.scripted.received if isinstance(message, Pin)] == [["tiny"]]


async def test_a_model_that_is_not_there_cannot_be_pinned(client: httpx.AsyncClient) -> None:
    assert (await send(client, "PUT", "/memory/pins", {"models": ["nobody"]})).status_code == 404


async def test_the_log_is_read_on_from_a_number(client: httpx.AsyncClient) -> None:
    for size in (1, 2, 3):
        await send(client, "POST", "/memory/need", {"size": size})
    page = (await client.get("/memory/decisions?after=1")).json()
    assert [(line["number"], line["kind"], line["size"]) for line in page["decisions"]] == [
        (2, "hold", 2),
        (3, "hold", 3),
    ]
    assert page["settled"] == 2
    assert (await client.get("/memory/decisions?after=-1")).status_code == 400
