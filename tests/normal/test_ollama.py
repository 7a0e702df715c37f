"""Ollama's API over a scripted world: what is asked of the secure world, and what clients read."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from flexserve.protocol.prompts import ChatMessage, ChatPrompt, InfillPrompt, TextPrompt, ToolCall
from flexserve.protocol.requests import Convert, Generate, Warm
from flexserve.testing.script import Behaviour, Fault, Script
from flexserve.testing.scripted_link import ScriptedLink

pytestmark = pytest.mark.anyio
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
MODELS = {
    "tiny": Behaviour(),
    "caller": Behaviour(tokens=["Let me ", "see. ", CALL[:20], CALL[20:]]),
    "thinker": Behaviour(tokens=[*"<think>\nHm.</think>\n\nYes."]),
    "forged": Behaviour(fault=Fault.FAIL),
}
USER = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}

NO_LOGPROBS = {"stream": False, "logprobs": False, "top_logprobs": 0}


@pytest.fixture
def link() -> ScriptedLink:
    return ScriptedLink(Script(models=MODELS))


def chat(model: str = "tiny", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": USER, **more}


def lines(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


async def test_a_chat_streams_unless_it_is_told_not_to(client: httpx.AsyncClient) -> None:
    *said, end = lines(await client.post("/api/chat", json=chat()))
    assert "".join(one["message"]["content"] for one in said) == "Hello, world!"
    assert not any(one["done"] for one in said)
    assert (end["done"], end["done_reason"], end["eval_count"], end["prompt_eval_count"]) == (
        True,
        "stop",
        4,
        7,
    )
    whole = (await client.post("/api/chat", json=chat(stream=False))).json()
    assert whole["message"] == {"role": "assistant", "content": "Hello, world!"}
    assert whole["done"] is True
    assert whole["prompt_eval_duration"] == 2_500_000


async def test_a_body_is_json_whatever_its_type_is_said_to_be(client: httpx.AsyncClient) -> None:
    for kind in ("application/x-www-form-urlencoded", "text/plain"):
        headers = {"Content-Type": kind}
        response = await client.post("/api/chat", content=json.dumps(chat(stream=False)), headers=headers)
        assert response.json()["message"]["content"] == "Hello, world!"


async def test_a_call_comes_whole_with_its_arguments_as_an_object(client: httpx.AsyncClient) -> None:
    for stream in (True, False):
        response = await client.post("/api/chat", json=chat("caller", tools=[TOOL], stream=stream))
        messages = [one["message"] for one in (lines(response) if stream else [response.json()])]
        (call,) = [call for message in messages for call in message.get("tool_calls", [])]
        assert call["function"] == {"name": "weather", "arguments": {"city": "Rome"}}
        assert "".join(message["content"] for message in messages).strip() == "Let me see."


async def test_a_thought_is_apart_from_the_answer(client: httpx.AsyncClient, link: ScriptedLink) -> None:
    whole = (await client.post("/api/chat", json=chat("thinker", think=True, stream=False))).json()
    assert whole["message"] == {"role": "assistant", "content": "Yes.", "thinking": "Hm."}
    assert link.scripted.last(Generate).prompt.thinking is True
    pieces = lines(await client.post("/api/chat", json=chat("thinker", think="high")))
    assert "".join(piece["message"].get("thinking", "") for piece in pieces) == "Hm."
    assert json.loads(link.scripted.last(Generate).prompt.values) == {"reasoning_effort": "high"}
    body = {"model": "thinker", "prompt": "Hi", "think": False, "stream": False}
    made = (await client.post("/api/generate", json=body)).json()
    assert (made["thinking"], made["response"]) == ("Hm.", "Yes.")
    assert link.scripted.last(Generate).prompt.thinking is False


async def test_a_conversation_crosses_with_results_that_name_their_calls(
    client: httpx.AsyncClient, link: ScriptedLink
) -> None:
    call = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How is Rome?"},
        {"role": "assistant", "content": "", "tool_calls": [call, call], "thinking": "Hm."},
        {"role": "tool", "content": "sunny", "tool_name": "weather"},
        {"role": "tool", "content": "warm"},
    ]
    options = {"temperature": 0, "top_p": 0.5, "seed": 3, "num_predict": 9, "stop": ["x"], "num_thread": 8}
    options |= {"top_k": 7, "repeat_penalty": 1.1, "mirostat": 0, "tfs_z": 1.0}
    response = await client.post("/api/chat", json=chat(messages=turns, options=options, format="json"))
    assert response.status_code == 200, response.text
    request = link.scripted.last(Generate)
    arguments = '{"city": "Rome"}'
    assert request.prompt.messages == [
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "How is Rome?"),
        ChatMessage(
            "assistant",
            "",
            [ToolCall("call_2_0", "weather", arguments), ToolCall("call_2_1", "weather", arguments)],
            thought="Hm.",
        ),
        ChatMessage("tool", "sunny", [], "call_2_0", "weather"),
        ChatMessage("tool", "warm", [], "call_2_1", ""),
    ]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.max_tokens) == (0, 0.5, 3, 9)
    assert (sampling.stop, sampling.schema) == (["x"], "{}")
    assert (sampling.top_k, sampling.repeat_penalty) == (7, 1.1)


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_log_probabilities_come_with_the_tokens_that_they_are_of(
    client: httpx.AsyncClient, path: str
) -> None:
    body = {"model": "caller", "messages": USER, "tools": [TOOL], "logprobs": True, "top_logprobs": 2}
    if path == "/api/generate":
        body = {"model": "caller", "prompt": "Hi", "logprobs": True, "top_logprobs": 2}
    whole = (await client.post(path, json={**body, "stream": False})).json()
    assert [one["token"] for one in whole["logprobs"]] == MODELS["caller"].tokens
    first = whole["logprobs"][0]
    assert (first["logprob"], first["bytes"]) == (-0.5, list(b"Let me "))
    assert [one["logprob"] for one in first["top_logprobs"]] == [-1.0, -2.0]
    streamed = lines(await client.post(path, json=body))
    assert [one for line in streamed for one in line.get("logprobs", [])] == whole["logprobs"]
    assert "logprobs" not in (await client.post(path, json={**body, **NO_LOGPROBS})).json()


async def test_the_likeliest_tokens_are_told_with_log_probabilities_only(client: httpx.AsyncClient) -> None:
    response = await client.post("/api/chat", json=chat(top_logprobs=2))
    assert response.status_code == 400
    assert "logprobs" in response.json()["error"]


async def test_a_prompt_is_a_question_a_raw_text_or_a_gap(
    client: httpx.AsyncClient, link: ScriptedLink
) -> None:
    async def prompt_of(**body: Any) -> Any:
        response = await client.post("/api/generate", json={"model": "tiny", **body})
        assert "".join(one["response"] for one in lines(response)) == "Hello, world!"
        return link.scripted.last(Generate).prompt

    assert await prompt_of(prompt="Hi", system="Be brief.") == ChatPrompt(
        [ChatMessage("system", "Be brief."), ChatMessage("user", "Hi")]
    )
    assert await prompt_of(prompt="Hi", raw=True) == TextPrompt("Hi")
    assert await prompt_of(prompt="def f(", suffix="return x") == InfillPrompt("def f(", "return x")


async def test_an_empty_request_loads_a_model_or_lets_it_go(
    client: httpx.AsyncClient, link: ScriptedLink
) -> None:
    loaded = lines(await client.post("/api/generate", json={"model": "tiny", "keep_alive": "10m"}))
    assert [one["done_reason"] for one in loaded] == ["load"]
    assert link.scripted.last(Warm).keep_alive == 600
    gone = lines(await client.post("/api/chat", json={"model": "tiny", "messages": [], "keep_alive": 0}))
    assert [one["done_reason"] for one in gone] == ["unload"]
    assert link.scripted.last(Convert).keep_alive == 0
    await client.post("/api/chat", json=chat(keep_alive="-1m"))
    assert link.scripted.last(Generate).keep_alive == -1


async def test_texts_become_vectors(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/api/embed", json={"model": "tiny", "input": ["a", "ab"]})).json()
    assert [len(vector) for vector in answer["embeddings"]] == [2, 2]
    assert answer["prompt_eval_count"] == 7
    for dimensions, length in ((1, 1), (0, 2)):
        body = {"model": "tiny", "input": "a", "dimensions": dimensions}
        cut = (await client.post("/api/embed", json=body)).json()
        assert len(cut["embeddings"][0]) == length
    old = (await client.post("/api/embeddings", json={"model": "tiny", "prompt": "a"})).json()
    assert old["embedding"] == answer["embeddings"][0]


async def test_models_are_listed_shown_and_seen_in_memory(client: httpx.AsyncClient) -> None:
    tags = (await client.get("/api/tags")).json()["models"]
    assert [model["name"] for model in tags] == list(MODELS)
    assert tags[0]["details"]["parameter_size"] == "8.03B"
    assert tags[0]["modified_at"] == "2023-11-14T22:13:20Z"
    shown = (await client.post("/api/show", json={"model": "tiny"})).json()
    assert shown["capabilities"] == ["completion", "tools", "embedding", "rerank"]
    assert shown["model_info"]["llama.context_length"] == 8192
    present = (await client.get("/api/ps")).json()["models"]
    assert (present[0]["size"], present[0]["context_length"]) == (300, 4096)
    assert (await client.get("/api/version")).json()["version"]
    assert (await client.head("/")).status_code == 200
    assert (await client.post("/api/show", json={"name": "absent"})).status_code == 404


async def test_the_store_is_not_changed_by_requests(client: httpx.AsyncClient) -> None:
    assert lines(await client.post("/api/pull", json={"model": "tiny"})) == [{"status": "success"}]
    for method, path, body in (
        ("POST", "/api/pull", {"model": "absent"}),
        ("POST", "/api/copy", {"source": "tiny", "destination": "other"}),
        ("POST", "/api/create", {"model": "other", "from": "tiny"}),
        ("POST", "/api/push", {"model": "tiny"}),
        ("DELETE", "/api/delete", {"model": "tiny"}),
    ):
        response = await client.request(method, path, json=body)
        assert response.status_code == 400
        assert "flexserve " in response.json()["error"]


async def test_what_is_to_happen_when_the_context_is_full_is_passed_on(
    client: httpx.AsyncClient, link: ScriptedLink
) -> None:
    await client.post("/api/chat", json=chat(shift=False, options={"num_keep": 5}))
    sampling = link.scripted.last(Generate).sampling
    assert (sampling.shift, sampling.n_keep) == (False, 5)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"options": {"num_ctx": 100_000}}, "num_ctx"),
        ({"shift": True}, "flexserve set tiny shift on"),
        ({"options": {"made_up": 1}}, "made_up"),
        ({"options": {"grammar": "root ::= x"}}, "grammar"),
        ({"made_up": 1}, "made_up"),
        ({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "Images"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"messages": "x"}, "messages"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(
    client: httpx.AsyncClient, wrong: Any, word: str
) -> None:
    response = await client.post("/api/chat", json=chat(**wrong))
    assert response.status_code == 400
    assert word in response.json()["error"]


async def test_an_error_in_a_stream_is_its_last_line(client: httpx.AsyncClient) -> None:
    *_, last = lines(await client.post("/api/chat", json=chat("forged")))
    assert set(last) == {"error"}
