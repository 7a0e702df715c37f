"""GET /events: what watchers of a server are shown, and what it costs when nobody watches."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import httpx
import pytest
from fastapi import FastAPI

from flexserve.normal import sampler as sampling
from flexserve.normal.api.admission import Admission
from flexserve.normal.api.app import create_app
from flexserve.normal.api.keys import Key, Keys
from flexserve.normal.request_log import MAX_REQUESTS, RequestLog
from flexserve.normal.sampler import MAX_SAMPLES, Sampler
from flexserve.normal.world import World
from flexserve.protocol.messages import Query
from flexserve.testing.scripted_link import ScriptedLink

pytestmark = pytest.mark.anyio
Until = Callable[[Callable[[], bool]], Awaitable[None]]
Json = dict[str, Any]
PROMPT, ANSWER = "a very secret prompt", "Hello, world!"


def parsed(body: bytes) -> list[Json]:
    """Return the events of a stream, having checked that each is named by its type."""
    events = []
    for block in body.decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


async def look(client: httpx.AsyncClient) -> dict[str, Json]:
    """Return the events of one look, by type."""
    response = await client.get("/events")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    events = parsed(response.content)
    assert [event["type"] for event in events][:2] == ["history", "state"]
    return {event["type"]: event for event in events}


async def chat(client: httpx.AsyncClient, model: str = "tiny") -> int:
    body = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4}
    return (await client.post("/v1/chat/completions", json=body)).status_code


class Watcher:
    """A client that reads GET /events?follow=true until it goes away."""

    def __init__(self, app: FastAPI, key: str = "none") -> None:
        self.body = b""
        self.status = 0
        self.ended = False
        self._asked = False
        self._gone = asyncio.Event()
        headers = [(b"host", b"127.0.0.1"), (b"x-api-key", key.encode())]
        scope = {"type": "http", "method": "GET", "path": "/events", "query_string": b"follow=true"}
        more = {"headers": headers, "raw_path": b"/events", "scheme": "http", "http_version": "1.1"}
        served = app({**scope, **more, "root_path": "", "client": None}, self._receive, self._send)
        self.task = asyncio.ensure_future(served)

    @property
    def events(self) -> list[Json]:
        return parsed(self.body)

    def every(self, kind: str) -> list[Json]:
        return [event for event in self.events if event["type"] == kind]

    async def leave(self) -> None:
        self._gone.set()
        await self.task

    async def _receive(self) -> Json:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.body += message["body"]
            self.ended = not message.get("more_body", False)


def keys_of(*keys: str) -> Keys:
    return Keys(Key.of(key, key) for key in keys)


class Watch(Protocol):
    def __call__(self) -> Watcher: ...


@pytest.fixture
def app(world: World) -> FastAPI:
    app = create_app(world)
    app.state.sampler = Sampler(world, period=0.01)
    return app


@pytest.fixture
async def watch(app: FastAPI) -> AsyncIterator[Watch]:
    """Begin to watch; whoever still does at the end leaves."""
    async with contextlib.AsyncExitStack() as stack:

        def begin() -> Watcher:
            watcher = Watcher(app)
            stack.push_async_callback(watcher.leave)
            return watcher

        yield begin


async def test_one_look_tells_the_state_and_wakes_nothing(
    client: httpx.AsyncClient, link: ScriptedLink
) -> None:
    shown = await look(client)
    state = shown["state"]
    assert state["status"] == "ok"
    assert state["error"] is None
    assert state["protection"]["name"] == "scripted"
    assert {model["name"] for model in state["models"]} >= {"tiny", "slow"}
    assert state["budget"]["size"] > 0
    assert state["budget"]["reason"]
    (point,) = shown["history"]["points"]
    assert point["models"]["tiny"] == [250, 30, 20]
    assert point["total"] == state["os"]["total"]
    assert {type(message).__name__ for message in link.scripted.received} == {"Hello", "Query"}


async def test_it_tells_what_requests_took_and_not_what_they_said(client: httpx.AsyncClient) -> None:
    assert await chat(client, "hungry") == 200
    assert await chat(client) == 200
    shown = await look(client)
    first, second = shown["requests"]["requests"]
    assert (first["model"], second["model"]) == ("hungry", "tiny")
    assert first["reason"] == "length"
    assert second["prompt_tokens"] == 7
    assert second["cached_tokens"] == 3
    assert second["tokens"] == 4
    assert (second["ttft"], second["queue"], second["prefill"]) == (4.0, 1.5, 2.5)
    grant, *_ = shown["decisions"]["decisions"]
    assert grant["kind"] == "grant"
    assert grant["size"] >= 64 << 20
    assert grant["reason"]
    told = json.dumps(shown)
    assert PROMPT not in told
    assert ANSWER not in told


async def test_a_model_that_is_not_there_is_no_request(client: httpx.AsyncClient) -> None:
    assert await chat(client, "made up by a client") == 404
    assert "requests" not in await look(client)


async def test_whoever_follows_is_told_what_changes_once(
    client: httpx.AsyncClient, watch: Watch, until: Until
) -> None:
    watcher = watch()
    await until(lambda: len(watcher.every("state")) >= 2)
    assert [event["type"] for event in watcher.events].count("history") == 1
    assert watcher.every("requests") == []
    assert await chat(client) == 200
    seen = len(watcher.every("state"))
    await until(lambda: len(watcher.every("state")) >= seen + 3)
    last = [request for event in watcher.every("requests") for request in event["requests"]][-1]
    assert (last["number"], last["reason"], last["tokens"]) == (1, "stop", 4)
    said = len(watcher.every("requests"))
    seen = len(watcher.every("state"))
    await until(lambda: len(watcher.every("state")) >= seen + 3)
    assert len(watcher.every("requests")) == said


async def test_a_request_that_runs_shows_its_tokens_as_they_come(
    client: httpx.AsyncClient, watch: Watch, until: Until
) -> None:
    watcher = watch()
    body = {"model": "slow", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 30}
    asking = asyncio.create_task(client.post("/v1/chat/completions", json=body))

    def counts() -> list[int]:
        asked = [request for event in watcher.every("requests") for request in event["requests"]]
        return [request["tokens"] for request in asked if not request["reason"]]

    await until(lambda: len(set(counts())) >= 3)
    assert counts() == sorted(counts())
    assert all(request["ttft"] for event in watcher.every("requests")[1:] for request in event["requests"])
    assert (await asking).status_code == 200


async def test_nobody_watches_nobody_looks(
    client: httpx.AsyncClient, watch: Watch, link: ScriptedLink, until: Until
) -> None:
    watcher = watch()
    await until(lambda: len(watcher.every("state")) >= 3)
    await watcher.leave()
    looked = len(link.scripted.every(Query))
    await asyncio.sleep(0.1)  # ten periods
    assert len(link.scripted.every(Query)) == looked


async def test_all_who_watch_share_each_look(watch: Watch, link: ScriptedLink, until: Until) -> None:
    watchers = [watch() for _ in range(8)]
    await until(lambda: all(len(watcher.every("state")) >= 5 for watcher in watchers))
    most = max(len(watcher.every("state")) for watcher in watchers)
    assert len(link.scripted.every(Query)) <= most + 1


async def test_who_comes_later_sees_what_those_before_saw(watch: Watch, until: Until) -> None:
    first = watch()
    await until(lambda: len(first.every("state")) >= 5)
    second = watch()
    await until(lambda: bool(second.every("state")))
    assert len(second.every("history")[0]["points"]) >= 5


async def test_there_are_not_more_watchers_than_there_may_be(
    watch: Watch, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "MAX_WATCHERS", 2)
    known = [watch(), watch()]
    await until(lambda: all(watcher.every("state") for watcher in known))
    refused = watch()
    await refused.task
    assert refused.status == 429
    await known[0].leave()
    admitted = watch()
    await until(lambda: bool(admitted.every("state")))


async def test_a_dead_secure_world_is_shown_and_so_is_the_next(
    world: World, watch: Watch, link: ScriptedLink, until: Until
) -> None:
    watcher = watch()
    await until(lambda: bool(watcher.every("state")))
    link.kill()
    await until(lambda: watcher.every("state")[-1]["restarts"] == 1)
    seen = len(watcher.every("state"))
    await until(lambda: len(watcher.every("state")) > seen)
    assert watcher.every("state")[-1]["status"] == "ok"
    assert "models" in watcher.every("state")[-1]


async def test_the_stream_ends_with_the_server(world: World, watch: Watch, until: Until) -> None:
    watcher = watch()
    await until(lambda: bool(watcher.every("state")))
    await world.drain(0)
    await watcher.task
    assert watcher.ended
    last = watcher.every("state")[-1]
    assert last["status"] == "stopped"
    assert last["error"]["message"]


@pytest.mark.parametrize("before", [[], ["sk-of-ann", "sk-of-bob"]], ids=["no keys", "keys"])
async def test_the_stream_ends_for_a_key_that_is_gone(world: World, until: Until, before: list[str]) -> None:
    admission = Admission(keys=keys_of(*before))
    app = create_app(world, admission)
    app.state.sampler = Sampler(world, period=0.01)
    ann, bob = Watcher(app, "sk-of-ann"), Watcher(app, "sk-of-bob")
    await until(lambda: bool(ann.every("state") and bob.every("state")))
    admission.become(Admission(keys=keys_of("sk-of-ann")))
    await bob.task
    assert bob.ended
    seen = len(ann.every("state"))
    await until(lambda: len(ann.every("state")) > seen)
    await ann.leave()


async def test_what_is_kept_is_bounded(world: World) -> None:
    sampler, log = Sampler(world), RequestLog()
    for _ in range(MAX_SAMPLES + 5):
        await sampler.look()
    assert len(sampler.samples) == MAX_SAMPLES
    for _ in range(MAX_REQUESTS + 5):
        log.end(log.start("tiny", 7, waited=0.0), "stop")
    assert len(log.changed_since(0)) == MAX_REQUESTS
