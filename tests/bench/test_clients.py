"""Many clients at once, beside another server."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from flexserve.bench.clients import Server, Turn, measure, table
from flexserve.errors import PeerError


class Endpoint:
    """Answers every prompt with three tokens, and keeps what it was asked."""

    def __init__(self, status: int = 200) -> None:
        self.prompts: list[str] = []
        self.status = status

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "the model"}]})
        body = json.loads(request.content)
        assert body["model"] == "the model"
        self.prompts.append(body["prompt"])
        words = [{"choices": [{"text": word}]} for word in (" one", " two", " three")]
        events = [*words, {"choices": [], "usage": {"completion_tokens": 3}}]
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        return httpx.Response(self.status, text="".join(lines) + "data: [DONE]\n\n")

    def server(self, name: str) -> Server:
        return Server(name, httpx.AsyncClient(transport=httpx.MockTransport(self), base_url="http://it"))


def test_both_servers_are_asked_the_same_and_no_prompt_comes_twice():
    ours, other = Endpoint(), Endpoint()
    asyncio.run(measure([ours.server("ours"), other.server("other")], [1, 3], rounds=2, tokens=3))
    assert ours.prompts == other.prompts
    assert len(set(ours.prompts)) == len(ours.prompts) == 3 * 2 * (1 + 3)


def test_each_client_asks_again_with_its_answer_in_the_prompt():
    endpoint = Endpoint()
    asyncio.run(measure([endpoint.server("ours")], [2], rounds=1, tokens=3))
    for new, continued in zip(endpoint.prompts[:2], endpoint.prompts[2:4], strict=True):
        assert continued.startswith(new + " one two three")


def test_the_first_round_is_not_counted():
    samples = asyncio.run(measure([Endpoint().server("ours")], [2], rounds=3, tokens=3))
    assert {key: len(turns) for key, turns in samples.items()} == {
        (2, "new", "ours"): 3,
        (2, "continued", "ours"): 3,
    }


def test_a_server_that_refuses_ends_the_measurement_with_what_it_said():
    with pytest.raises(PeerError, match="ours refused: data"):
        asyncio.run(measure([Endpoint(status=503).server("ours")], [1], rounds=1, tokens=3))


def test_the_table_has_medians_ranges_and_ratios_within_rounds():
    turns = {"ours": [Turn(10, 1), Turn(20, 2), Turn(90, 3)], "other": [Turn(5, 2), Turn(20, 2), Turn(30, 2)]}
    text = table({(8, "new", name): ones for name, ones in turns.items()}, "ours", "other")
    assert text.splitlines()[-1] == (
        "| 8 | new | 20 (10–90) | 20 (5–30) | 2.00 | 2 s (1–3) | 2 s (2–2) | 1.00 |"
    )
