"""Anthropic's API over a scripted world: what is asked of the secure world, and what clients read."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from flexserve.protocol.prompts import ChatMessage, ToolCall
from flexserve.protocol.requests import Convert, Generate
from flexserve.testing.script import Behaviour, Script
from flexserve.testing.scripted_link import ScriptedLink

pytestmark = pytest.mark.anyio
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
THINKS = [*"<think>\nHm.</think>\n\nYes."]
MODELS = {
    "tiny": Behaviour(),
    "thinker": Behaviour(tokens=THINKS),
    "caller": Behaviour(tokens=["Let me ", "see. ", CALL[:20], CALL[20:]]),
}
USER = [{"role": "user", "content": "Hi"}]
TOOL = {"name": "weather", "description": "How it is.", "input_schema": {"type": "object"}}


@pytest.fixture
def link() -> ScriptedLink:
    return ScriptedLink(Script(models=MODELS))


def body(model: str = "tiny", **more: Any) -> dict[str, Any]:
    return {"model": model, "max_tokens": 50, "messages": USER, **more}


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """Return the events of a stream, having checked that each says its name."""
    found = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


async def test_an_answer_is_a_message_of_blocks(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/messages", json=body())).json()
    assert answer["type"] == "message"
    assert answer["role"] == "assistant"
    assert answer["content"] == [{"type": "text", "text": "Hello, world!"}]
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("end_turn", None)
    assert answer["usage"]["input_tokens"] + answer["usage"]["cache_read_input_tokens"] == 7
    assert answer["usage"]["output_tokens"] == 4
    short = (await client.post("/v1/messages", json=body(max_tokens=2))).json()
    assert short["stop_reason"] == "max_tokens"


async def test_a_stream_says_the_same_in_events(client: httpx.AsyncClient) -> None:
    found = events(await client.post("/v1/messages", json=body(stream=True)))
    kinds = [event["type"] for event in found]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert found[0]["message"]["content"] == []
    assert "".join(e["delta"]["text"] for e in found if e["type"] == "content_block_delta") == "Hello, world!"
    assert found[-2]["delta"]["stop_reason"] == "end_turn"
    assert found[-2]["usage"]["output_tokens"] == 4


async def test_a_call_is_a_block_of_its_own(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/messages", json=body("caller", tools=[TOOL]))).json()
    text, call = answer["content"]
    assert text["text"].strip() == "Let me see."
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "weather", {"city": "Rome"})
    assert answer["stop_reason"] == "tool_use"
    found = events(await client.post("/v1/messages", json=body("caller", tools=[TOOL], stream=True)))
    starts = [event for event in found if event["type"] == "content_block_start"]
    assert [event["index"] for event in starts] == [0, 1]
    pieces = [
        e["delta"]["partial_json"] for e in found if e.get("delta", {}).get("type") == "input_json_delta"
    ]
    assert json.loads("".join(pieces)) == {"city": "Rome"}


async def test_a_thought_is_a_block_before_the_answer(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/messages", json=body("thinker"))).json()
    thought, text = answer["content"]
    assert thought == {"type": "thinking", "thinking": "Hm.", "signature": ""}
    assert text["text"] == "Yes."
    found = events(await client.post("/v1/messages", json=body("thinker", stream=True)))
    deltas = [event["delta"] for event in found if event["type"] == "content_block_delta"]
    assert "".join(delta.get("thinking", "") for delta in deltas) == "Hm."
    assert "".join(delta.get("text", "") for delta in deltas) == "Yes."
    starts = [e["content_block"]["type"] for e in found if e["type"] == "content_block_start"]
    assert starts == ["thinking", "text"]


async def test_a_thought_is_left_out_where_that_is_asked_for(client: httpx.AsyncClient) -> None:
    hidden = {"thinking": {"type": "adaptive", "display": "omitted"}}
    (text,) = (await client.post("/v1/messages", json=body("thinker", **hidden))).json()["content"]
    assert text == {"type": "text", "text": "Yes."}
    response = await client.post("/v1/messages", json=body("thinker", stream=True, **hidden))
    assert "Hm." not in response.text
    starts = [e["index"] for e in events(response) if e["type"] == "content_block_start"]
    assert starts == [0]


@pytest.mark.parametrize(
    ("thinking", "crossed"),
    [
        (None, (None, None)),
        ({"type": "adaptive"}, (None, None)),
        ({"type": "disabled"}, (False, None)),
        ({"type": "enabled", "budget_tokens": 1024}, (True, 1024)),
    ],
)
async def test_whether_and_how_long_to_think_crosses(
    client: httpx.AsyncClient, link: ScriptedLink, thinking: Any, crossed: Any
) -> None:
    schema = {"type": "json_schema", "schema": {"type": "object"}}
    config = {"effort": "high", "format": schema}
    await client.post("/v1/messages", json=body(thinking=thinking, output_config=config))
    request = link.scripted.last(Generate)
    assert (request.prompt.thinking, request.prompt.thought_tokens) == crossed
    assert json.loads(request.prompt.values) == {"reasoning_effort": "high"}
    assert json.loads(request.sampling.schema) == {"type": "object"}


async def test_a_conversation_crosses_as_turns_calls_and_results(
    client: httpx.AsyncClient, link: ScriptedLink
) -> None:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "How is "}, {"type": "text", "text": "Rome?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "content": [{"type": "text", "text": "sunny"}],
                },
                {"type": "text", "text": "And?"},
            ],
        },
    ]
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    more: dict[str, Any] = {
        "tool_choice": {"type": "any"},
        "stop_sequences": ["x"],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "service_tier": "auto",
    }
    response = await client.post(
        "/v1/messages", json=body(messages=turns, system=system, tools=[TOOL], **more)
    )
    assert response.status_code == 200, response.text
    request = link.scripted.last(Generate)
    assert request.prompt.messages == [
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "How is Rome?"),
        ChatMessage(
            "assistant", "I look.", [ToolCall("toolu_1", "weather", '{"city":"Rome"}')], thought="Hm."
        ),
        ChatMessage("tool", "sunny", tool_call_id="toolu_1"),
        ChatMessage("user", "And?"),
    ]
    assert request.prompt.must_call == ["weather"]
    (tool,) = json.loads(request.prompt.tools)
    assert tool["function"] == {
        "name": "weather",
        "description": "How it is.",
        "parameters": {"type": "object"},
    }
    sampling = request.sampling
    assert sampling.top_k == 3
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.stop) == (50, 0.5, 0.9, ["x"])


async def test_a_model_is_told_that_its_call_failed(client: httpx.AsyncClient, link: ScriptedLink) -> None:
    call = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "no such city", "is_error": True}
    turns = [*USER, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    await client.post("/v1/messages", json=body(messages=turns, tools=[TOOL]))
    *_, last = link.scripted.last(Generate).prompt.messages
    assert (last.role, last.content) == ("tool", "Error: no such city")


async def test_tokens_are_counted_and_nothing_is_computed(
    client: httpx.AsyncClient, link: ScriptedLink
) -> None:
    response = await client.post("/v1/messages/count_tokens", json={"model": "tiny", "messages": USER})
    assert response.json() == {"input_tokens": len("user: Hi\n")}
    kinds = {type(message) for message in link.scripted.received}
    assert Convert in kinds
    assert Generate not in kinds


@pytest.mark.parametrize(
    "wrong",
    [
        {"mcp_servers": [{}]},
        {"thinking": {"type": "often"}},
        {"max_tokens": None},
        {"made_up": 1},
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        {"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]},
        {"tools": [TOOL], "tool_choice": {"type": "tool"}},
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tools": [{**TOOL, "input_examples": [{}]}]},
        {"tools": [{**TOOL, "defer_loading": True}]},
    ],
)
async def test_what_cannot_be_done_is_refused_in_anthropics_form(
    client: httpx.AsyncClient, wrong: Any
) -> None:
    response = await client.post("/v1/messages", json=body(**wrong))
    assert response.status_code == 400
    assert response.json()["type"] == "error"
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_a_model_that_is_not_there_is_a_not_found_error(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/messages", json=body("absent"))
    assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found_error")
