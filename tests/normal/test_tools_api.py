"""Tools, forms of answers, terms of requests and vectors, over a scripted world."""

from __future__ import annotations

import base64
import json
import math
import struct
from typing import Any

import httpx
import pytest

from flexserve.normal.api import answering
from flexserve.protocol.prompts import ToolCall
from flexserve.protocol.requests import Embed, Generate
from flexserve.testing.script import Behaviour, Script
from flexserve.testing.scripted_link import ScriptedLink
from flexserve.testing.scripted_world import vector_of

pytestmark = pytest.mark.anyio

CALL = '<tool_call>\n{"name": "look", "arguments": {"where": "here"}}\n</tool_call>'
MODELS = {
    "tiny": Behaviour(),
    "caller": Behaviour(tokens=["I ", "look.\n", *CALL, "\n", *CALL]),
    "thinker": Behaviour(tokens=[*"<think>\nso be it</think>\n\nYes."]),
    "bare": Behaviour(tokens=list('{"name": "look", "parameters": {}}')),
    "slow": Behaviour(tokens=list('{"name": "look", "parameters": {}}'), token_delay=0.002),
    "cut": Behaviour(tokens=["<tool_call>", '{"name"'], reason="length"),
}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
USER = [{"role": "user", "content": "a very secret prompt"}]


@pytest.fixture
def link() -> ScriptedLink:
    return ScriptedLink(Script(models=MODELS))


async def chat(client: httpx.AsyncClient, model: str = "tiny", **more: Any) -> Any:
    response = await client.post("/v1/chat/completions", json={"model": model, "messages": USER, **more})
    if more.get("stream"):
        data = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
        return [json.loads(one) for one in data if one != "[DONE]"]
    return response.json()


async def test_calls_are_told_apart_from_text(client: httpx.AsyncClient) -> None:
    choice = (await chat(client, "caller", tools=TOOLS))["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "I look."
    first, second = choice["message"]["tool_calls"]
    assert first["type"] == "function"
    assert first["function"] == {"name": "look", "arguments": '{"where": "here"}'}
    assert first["id"] != second["id"]
    bare = (await chat(client, "bare", tools=TOOLS))["choices"][0]["message"]
    assert bare["content"] is None
    assert [call["function"]["name"] for call in bare["tool_calls"]] == ["look"]


async def test_calls_in_a_stream_come_in_order_and_their_arguments_in_pieces(
    client: httpx.AsyncClient,
) -> None:
    chunks = await chat(client, "caller", tools=TOOLS, stream=True)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content") or "" for delta in deltas) == "I look."
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    begun = [call for call in calls if "id" in call]
    assert [(call["index"], call["function"]["name"]) for call in begun] == [(0, "look"), (1, "look")]
    pieces = [call["function"]["arguments"] for call in calls if call["index"] == 0]
    assert json.loads("".join(pieces)) == {"where": "here"}
    assert len(pieces) > 5
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_thoughts_are_told_apart_from_what_is_said(client: httpx.AsyncClient) -> None:
    message = (await chat(client, "thinker"))["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("so be it", "Yes.")
    deltas = [chunk["choices"][0]["delta"] for chunk in await chat(client, "thinker", stream=True)]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "so be it"
    assert "".join(delta.get("content") or "" for delta in deltas) == "Yes."
    raw = (await chat(client, "thinker", reasoning_format="none"))["choices"][0]["message"]
    assert raw["content"] == "<think>\nso be it\n</think>\n\nYes."
    assert "reasoning_content" not in raw


@pytest.mark.parametrize(
    ("fields", "values", "thinking", "most"),
    [
        ({}, None, None, None),
        ({"enable_thinking": False}, None, False, None),
        ({"chat_template_kwargs": {"enable_thinking": True}}, {"enable_thinking": True}, True, None),
        ({"reasoning_effort": "high"}, {"reasoning_effort": "high"}, None, None),
        ({"reasoning_effort": "none"}, None, False, None),
        ({"reasoning_budget_tokens": 7}, None, None, 7),
        ({"thinking_budget_tokens": 0, "reasoning_budget_tokens": -1}, None, None, 0),
    ],
)
async def test_how_to_think_crosses_to_the_secure_world(
    client: httpx.AsyncClient, link: ScriptedLink, fields: Any, values: Any, thinking: Any, most: Any
) -> None:
    await chat(client, **fields)
    prompt = link.scripted.last(Generate).prompt
    assert (prompt.values and json.loads(prompt.values)) == values
    assert (prompt.thinking, prompt.thought_tokens) == (thinking, most)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"chat_template_kwargs": {"messages": []}}, "The server itself says what messages is"),
        ({"stop": 5}, "Input should be a valid string or a valid list"),
        ({"tool_choice": 5}, "Input should be 'none', 'auto' or 'required'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "Images are not supported",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "Sounds are not supported",
        ),
        ({"messages": [{"role": "user", "content": 5}]}, "The content is a text or a list of texts"),
    ],
)
async def test_of_what_may_have_several_forms_it_is_said_what_is_wrong(
    client: httpx.AsyncClient, more: Any, message: str
) -> None:
    assert message in (await chat(client, **more))["error"]["message"]


async def test_pings_keep_a_stream_alive_while_a_call_is_held_back(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "PING_SECONDS", 0.003)
    body = {"model": "slow", "messages": USER, "tools": TOOLS, "stream": True}
    text = (await client.post("/v1/chat/completions", json=body)).text
    assert text.count(": still working") >= 2
    assert text.index(": still working") < text.index('"tool_calls"') < text.index("[DONE]")


async def test_a_client_that_wants_one_call_gets_one(client: httpx.AsyncClient) -> None:
    message = (await chat(client, "caller", tools=TOOLS, parallel_tool_calls=False))["choices"][0]["message"]
    assert len(message["tool_calls"]) == 1


async def test_without_tools_text_that_looks_like_a_call_is_text(client: httpx.AsyncClient) -> None:
    for more in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = (await chat(client, "caller", **more))["choices"][0]
        assert choice["message"]["content"].count("<tool_call>") == 2
        assert choice["finish_reason"] == "stop"


async def test_a_call_that_was_cut_off_is_text(client: httpx.AsyncClient) -> None:
    choice = (await chat(client, "cut", tools=TOOLS))["choices"][0]
    assert choice["message"]["content"] == '<tool_call>{"name"'
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("choice", "must_call"),
    [("auto", []), ("required", ["look"]), ({"type": "function", "function": {"name": "look"}}, ["look"])],
)
async def test_tools_and_the_choice_cross_to_the_secure_world(
    client: httpx.AsyncClient, link: ScriptedLink, choice: Any, must_call: list[str]
) -> None:
    await chat(client, tools=TOOLS, tool_choice=choice)
    prompt = link.scripted.last(Generate).prompt
    assert json.loads(prompt.tools) == TOOLS
    assert prompt.must_call == must_call


async def test_a_named_tool_has_to_be_among_the_tools(client: httpx.AsyncClient) -> None:
    choice = {"type": "function", "function": {"name": "other"}}
    error = (await chat(client, tools=TOOLS, tool_choice=choice))["error"]
    assert error["param"] == "tool_choice.function.name"


async def test_a_conversation_with_calls_crosses_whole(client: httpx.AsyncClient, link: ScriptedLink) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}}
    turns = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "42"},
    ]
    assert "choices" in await chat(client, messages=turns, tools=TOOLS)
    _, made, result = link.scripted.last(Generate).prompt.messages
    assert (made.content, made.tool_calls) == ("", [ToolCall("call_1", "look", '{"a":1}')])
    assert (result.role, result.tool_call_id, result.content) == ("tool", "call_1", "42")


async def test_the_form_of_an_answer_crosses_as_a_schema(
    client: httpx.AsyncClient, link: ScriptedLink
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    await chat(client, response_format={"type": "json_object"})
    assert link.scripted.last(Generate).sampling.schema == "{}"
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    await chat(client, response_format=wanted)
    assert json.loads(link.scripted.last(Generate).sampling.schema) == schema
    wanted = {"type": "json_object", "schema": schema}  # as llama-server has it; so is the next
    await chat(client, response_format=wanted)
    assert json.loads(link.scripted.last(Generate).sampling.schema) == schema
    await chat(client, response_format={"type": "json_schema", "schema": schema})
    assert json.loads(link.scripted.last(Generate).sampling.schema) == schema
    await chat(client, response_format={"type": "text"})
    assert link.scripted.last(Generate).sampling.schema is None


@pytest.mark.parametrize(
    ("value", "seconds"), [("10m", 600), (90, 90), (-1, -1), ("-1", -1), (0, 0), (None, None)]
)
async def test_keep_alive_is_honoured_on_every_route(
    client: httpx.AsyncClient, link: ScriptedLink, value: Any, seconds: float | None
) -> None:
    await chat(client, keep_alive=value)
    assert link.scripted.last(Generate).keep_alive == seconds
    await client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "keep_alive": value})
    assert link.scripted.last(Generate).keep_alive == seconds
    await client.post("/v1/embeddings", json={"model": "tiny", "input": "x", "keep_alive": value})
    assert link.scripted.last(Embed).keep_alive == seconds


async def test_hints_and_priority_cross(client: httpx.AsyncClient, link: ScriptedLink) -> None:
    await chat(client, flexserve={"next_model": "bare", "priority": 3})
    assert (link.scripted.last(Generate).next_model, link.scripted.last(Generate).priority) == ("bare", 3)


async def test_the_owner_is_told_by_key_and_user_and_does_not_show_them(
    client: httpx.AsyncClient, link: ScriptedLink
) -> None:
    owners = []
    for key, user in (("key-one", None), ("key-two", None), ("key-one", "u"), ("key-one", None)):
        client.headers["Authorization"] = f"Bearer {key}"
        await chat(client, user=user)
        owners.append(link.scripted.last(Generate).owner)
        assert key not in owners[-1]
    assert len(set(owners)) == 3
    assert owners[0] == owners[3]


async def test_vectors_in_both_forms(client: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "input": ["x", "seven.."]}
    answer = (await client.post("/v1/embeddings", json=body)).json()
    assert answer["object"] == "list"
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert [one["index"] for one in answer["data"]] == [0, 1]
    for one, text in zip(answer["data"], body["input"], strict=True):
        assert one["embedding"] == pytest.approx(struct.unpack("<2f", vector_of(text)), abs=1e-6)
    coded = (await client.post("/v1/embeddings", json={**body, "encoding_format": "base64"})).json()
    assert base64.b64decode(coded["data"][1]["embedding"]) == vector_of("seven..")


async def test_vectors_may_be_cut_and_have_length_1_again(client: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "input": "seven.."}
    (whole,) = (await client.post("/v1/embeddings", json={**body, "dimensions": 2})).json()["data"]
    first, second = struct.unpack("<2f", vector_of("seven.."))
    length = math.hypot(first, second)
    assert whole["embedding"] == pytest.approx([first / length, second / length], abs=1e-6)
    (cut,) = (await client.post("/v1/embeddings", json={**body, "dimensions": 1})).json()["data"]
    assert cut["embedding"] == [math.copysign(1, first)]


async def test_many_texts_go_in_parts_so_that_others_have_their_turn(
    client: httpx.AsyncClient, link: ScriptedLink
) -> None:
    texts = ["x" * (1 + number % 8) for number in range(37)]
    body = {"model": "tiny", "input": texts, "encoding_format": "base64", "keep_alive": 0}
    answer = (await client.post("/v1/embeddings", json=body)).json()
    sent = link.scripted.every(Embed)
    assert [message.keep_alive for message in sent] == [None, None, 0]
    parts = [message.texts for message in sent]
    assert [text for part in parts for text in part] == texts
    assert [base64.b64decode(one["embedding"]) for one in answer["data"]] == [vector_of(t) for t in texts]
    assert answer["usage"]["prompt_tokens"] == 21


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"input": []}, "input"),
        ({"input": {"content": [{"type": "image_url"}]}}, "input"),
        ({"input": {"content": "no list"}}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 3}, "dimensions"),  # of vectors of two numbers
        ({"encoding_format": "hex"}, "encoding_format"),
    ],
)
async def test_a_wrong_request_for_vectors_is_a_400_that_names_it(
    client: httpx.AsyncClient, more: dict[str, Any], param: str
) -> None:
    response = await client.post("/v1/embeddings", json={"model": "tiny", "input": "x", **more})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(param)


async def test_vectors_of_an_unknown_model_are_a_404(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/embeddings", json={"model": "nobody", "input": "x"})
    assert response.status_code == 404
