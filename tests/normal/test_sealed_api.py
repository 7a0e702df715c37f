"""POST /v1/sealed: a relay passes on what it cannot read, and answers all that does not open alike."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from flexserve.attestation.policy import Policy
from flexserve.attestation.verification import verify
from flexserve.normal.world import World
from flexserve.protocol.answers import Delta, Embedded, Failed, Finished, Started
from flexserve.protocol.messages import Query, Status
from flexserve.protocol.prompts import TextPrompt
from flexserve.protocol.requests import Cancel, Embed, Generate
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.sealed_exchange import Exchange
from flexserve.protocol.sealed_messages import Sealed, SealedPart
from flexserve.testing.scripted_link import ScriptedLink
from flexserve.testing.scripted_world import FACTS, IDENTITY

pytestmark = pytest.mark.anyio
CANARY = "a question that nobody between may read"


def exchange(asked: Any = None) -> Exchange:
    asked = asked or Generate(0, "tiny", TextPrompt(CANARY), Sampling())
    said = IDENTITY.attest(bytes(32), FACTS)
    public = verify(said.chain, said.token, bytes(32), Policy(emulated="allow")).sealing.public
    return Exchange(asked, b"o" * 32, public, bytes(32), time.time_ns() // 1_000_000)


async def post(client: httpx.AsyncClient, body: bytes) -> httpx.Response:
    return await client.post("/v1/sealed", content=body)


async def answered(client: httpx.AsyncClient, asked: Exchange) -> list[Any]:
    response = await post(client, asked.body)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/octet-stream")
    messages = asked.feed(response.content)
    asked.end()
    return messages


async def test_a_sealed_question_has_a_sealed_answer(client: httpx.AsyncClient, link: ScriptedLink):
    messages = await answered(client, exchange())
    assert "".join(message.text for message in messages if isinstance(message, Delta)) == "Hello, world!"
    assert [type(messages[0]), type(messages[-1])] == [Started, Finished]
    (received,) = [message for message in link.scripted.received if isinstance(message, Sealed)]
    assert CANARY.encode() not in received.body


async def test_vectors_and_states_are_sealed_as_well(client: httpx.AsyncClient):
    messages = await answered(client, exchange(Embed(0, "tiny", ["one", "two"])))
    assert sum(isinstance(message, Embedded) for message in messages) == 2
    (status,) = await answered(client, exchange(Query(0)))
    assert isinstance(status, Status)
    assert "tiny" in {model.name for model in status.models}


async def test_an_error_of_a_request_that_opened_is_told_to_its_sender_only(client: httpx.AsyncClient):
    messages = await answered(client, exchange(Generate(0, "nowhere", TextPrompt("x"), Sampling())))
    assert [type(message) for message in messages] == [Failed]
    assert messages[0].failure.code == "model_not_found"


async def test_bodies_that_do_not_open_are_answered_alike(client: httpx.AsyncClient):
    seen = exchange()
    await answered(client, seen)
    good = exchange().body
    bodies = [b"", b"x", bytes(3000), good[:-1], good[:-1] + bytes([good[-1] ^ 1]), seen.body, good[:44]]
    answers = [await post(client, body) for body in bodies]
    assert {(answer.status_code, answer.text) for answer in answers} == {(400, answers[0].text)}
    assert answers[0].json()["error"]["code"] == "sealed_refused"


async def test_a_client_that_goes_away_ends_its_request(
    world: World, link: ScriptedLink, until: Callable[[Callable[[], bool]], Awaitable[None]]
):
    answer = await world.sealed("slow", exchange(Generate(0, "slow", TextPrompt("x"), Sampling())).body)
    async with answer:
        assert isinstance(await anext(answer), SealedPart)
    await until(lambda: Cancel(answer.request) in link.scripted.received)
