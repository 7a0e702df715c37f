"""Several answers to one request: to several prompts, and several to each."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from flexserve.protocol.prompts import TextPrompt, TokenPrompt
from flexserve.protocol.requests import Generate
from flexserve.testing.scripted_link import ScriptedLink

pytestmark = pytest.mark.anyio
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


async def complete(client: httpx.AsyncClient, prompt: Any, model: str = "tiny", **more: Any) -> Any:
    response = await client.post("/v1/completions", json={"model": model, "prompt": prompt, **more})
    assert response.status_code == 200, response.text
    return response.json()


def chunks(response: httpx.Response) -> list[Any]:
    data = [line.removeprefix("data: ") for line in response.text.split("\n") if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(one) for one in data[:-1]]


async def test_each_prompt_has_its_answers_in_order(client: httpx.AsyncClient, link: ScriptedLink) -> None:
    body = await complete(client, ["a", "b", [1, 2]], n=2, seed=7)
    assert [choice["index"] for choice in body["choices"]] == list(range(6))
    assert {choice["text"] for choice in body["choices"]} == {"Hello, world!"}
    prompts = [message.prompt for message in link.scripted.every(Generate)]
    assert prompts == [*[TextPrompt("a")] * 2, *[TextPrompt("b")] * 2, *[TokenPrompt([1, 2])] * 2]
    assert [message.sampling.seed for message in link.scripted.every(Generate)] == [7, 8] * 3


async def test_a_prompt_counts_once_and_each_answer(client: httpx.AsyncClient) -> None:
    usage = (await complete(client, ["a", "b"], n=2))["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (14, 16, 30)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 6}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("a", TextPrompt("a")),
        (["a"], TextPrompt("a")),
        ([1, 2], TokenPrompt([1, 2])),
        ([[1, 2]], TokenPrompt([1, 2])),
        ([1, "a", 2], TokenPrompt([1, "a", 2])),
    ],
)
async def test_a_prompt_is_a_text_or_tokens_or_both(
    client: httpx.AsyncClient, link: ScriptedLink, given: Any, meant: Any
) -> None:
    await complete(client, given)
    (message,) = link.scripted.every(Generate)
    assert message.prompt == meant


async def test_several_answers_to_a_conversation(client: httpx.AsyncClient, link: ScriptedLink) -> None:
    response = await client.post("/v1/chat/completions", json=CHAT | {"n": 3})
    choices = response.json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in choices} == {"Hello, world!"}
    assert len(link.scripted.every(Generate)) == 3


async def test_the_likeliest_answers_are_sent(client: httpx.AsyncClient, link: ScriptedLink) -> None:
    body = await complete(client, "a", n=2, best_of=5)
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert {choice["logprobs"] for choice in body["choices"]} == {None}
    assert [message.sampling.logprobs for message in link.scripted.every(Generate)] == [0] * 5
    assert body["usage"]["completion_tokens"] == 20


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
async def test_a_stream_has_all_answers_and_one_end(client: httpx.AsyncClient, path: str) -> None:
    body = CHAT if path.startswith("chat") else {"model": "tiny", "prompt": "a"}
    more = {"n": 6, "stream": True, "stream_options": {"include_usage": True}}
    *parts, usage = chunks(await client.post(f"/v1/{path}", json=body | more))
    assert {part["id"] for part in parts} == {usage["id"]}
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 24)
    texts = dict.fromkeys(range(6), "")
    ends = []
    for part in parts:
        (choice,) = part["choices"]
        texts[choice["index"]] += choice.get("text") or choice.get("delta", {}).get("content") or ""
        ends += [choice["index"]] if choice["finish_reason"] else []
    assert texts == dict.fromkeys(range(6), "Hello, world!")
    assert ends == list(range(6))


@pytest.mark.parametrize("stream", [False, True])
async def test_one_that_fails_ends_the_request(
    client: httpx.AsyncClient, link: ScriptedLink, stream: bool
) -> None:
    response = await client.post(
        "/v1/chat/completions", json=CHAT | {"model": "forged", "n": 9, "stream": stream}
    )
    if stream:
        assert response.status_code == 200
        assert '"stored_data_error"' in response.text
        assert "[DONE]" not in response.text
    else:
        assert response.status_code == 500
    assert len(link.scripted.every(Generate)) == 4


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_refused_at_once_is_refused_by_status(client: httpx.AsyncClient, stream: bool) -> None:
    response = await client.post(
        "/v1/chat/completions", json=CHAT | {"model": "nobody", "n": 2, "stream": stream}
    )
    assert response.status_code == 404


async def test_too_many_answers_are_refused(client: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "prompt": ["a"] * 43, "n": 3}
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 400
    assert "128 answers" in response.text
