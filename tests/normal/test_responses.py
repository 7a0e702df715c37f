"""OpenAI's Responses API over a scripted world: what is asked of the secure world, and what clients read."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from flexserve.protocol.prompts import ChatMessage, ToolCall
from flexserve.protocol.requests import Generate
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
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}


@pytest.fixture
def link() -> ScriptedLink:
    return ScriptedLink(Script(models=MODELS))


def body(model: str = "tiny", **more: Any) -> dict[str, Any]:
    return {"model": model, "input": "Hi", **more}


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """Return the events of a stream, having checked that they are named and numbered."""
    found = []
    for number, block in enumerate(response.text.strip().split("\n\n")):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        found.append(event)
    return found


async def test_an_answer_is_a_response_of_items(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/responses", json=body(instructions="Be brief."))).json()
    assert (answer["object"], answer["status"], answer["store"]) == ("response", "completed", False)
    (item,) = answer["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [
        {"type": "output_text", "text": "Hello, world!", "annotations": [], "logprobs": []}
    ]
    assert answer["usage"]["total_tokens"] == 11
    assert answer["instructions"] == "Be brief."


async def test_it_takes_llama_servers_fields_of_sampling(
    client: httpx.AsyncClient, link: ScriptedLink
) -> None:
    schema: dict[str, Any] = {
        "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}}
    }
    await client.post("/v1/responses", json=body(seed=5, top_k=3, max_output_tokens=9, **schema))
    sampling = link.scripted.last(Generate).sampling
    assert (sampling.seed, sampling.top_k, sampling.max_tokens) == (5, 3, 9)
    assert sampling.schema == '{"type":"object"}'
    twice = await client.post("/v1/responses", json=body(json_schema={"type": "string"}, **schema))
    assert twice.status_code == 400


async def test_a_limit_makes_it_incomplete(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/responses", json=body(max_output_tokens=2))).json()
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_a_stream_says_the_same_in_events(client: httpx.AsyncClient) -> None:
    found = events(await client.post("/v1/responses", json=body(stream=True)))
    kinds = [event["type"].removeprefix("response.") for event in found]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    text = "".join(event["delta"] for event in found if event["type"] == "response.output_text.delta")
    assert text == "Hello, world!" == found[-4]["text"]
    assert found[-1]["response"]["output"][0]["content"][0]["text"] == text
    assert found[2]["item"]["content"] == []


async def test_a_call_is_an_item_of_its_own(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/responses", json=body("caller", tools=[TOOL]))).json()
    message, call = answer["output"]
    assert message["content"][0]["text"].strip() == "Let me see."
    assert (call["type"], call["name"]) == ("function_call", "weather")
    assert json.loads(call["arguments"]) == {"city": "Rome"}
    found = events(await client.post("/v1/responses", json=body("caller", tools=[TOOL], stream=True)))
    done = next(e for e in found if e["type"] == "response.function_call_arguments.done")
    assert json.loads(done["arguments"]) == {"city": "Rome"}
    assert done["output_index"] == 1
    assert found[-1]["response"]["output"][1]["arguments"] == done["arguments"]


async def test_a_thought_is_an_item_before_the_answer(client: httpx.AsyncClient, link: ScriptedLink) -> None:
    answer = (await client.post("/v1/responses", json=body("thinker", reasoning={"effort": "low"}))).json()
    thought, message = answer["output"]
    assert (thought["type"], thought["content"]) == ("reasoning", [{"type": "reasoning_text", "text": "Hm."}])
    assert message["content"][0]["text"] == "Yes."
    assert answer["reasoning"] == {"effort": "low", "summary": None}
    assert json.loads(link.scripted.last(Generate).prompt.values) == {"reasoning_effort": "low"}
    found = events(await client.post("/v1/responses", json=body("thinker", stream=True)))
    pieces = [event["delta"] for event in found if event["type"] == "response.reasoning_text.delta"]
    assert "".join(pieces) == "Hm."
    assert [item["type"] for item in found[-1]["response"]["output"]] == ["reasoning", "message"]


async def test_log_probabilities_are_those_of_the_text(client: httpx.AsyncClient) -> None:
    wanted: dict[str, Any] = {"top_logprobs": 1, "include": ["message.output_text.logprobs"]}
    answer = (await client.post("/v1/responses", json=body(**wanted))).json()
    logprobs = answer["output"][0]["content"][0]["logprobs"]
    assert "".join(one["token"] for one in logprobs) == "Hello, world!"


async def test_an_error_ends_a_stream_as_a_response_that_failed(client: httpx.AsyncClient) -> None:
    found = events(await client.post("/v1/responses", json=body("forged", stream=True)))
    assert found[-1]["type"] == "response.failed"
    assert found[-1]["response"]["error"]["code"] == "stored_data_bad"


async def test_a_conversation_crosses_as_turns_calls_and_results(
    client: httpx.AsyncClient, link: ScriptedLink
) -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "How is Rome?"}]},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm."}],
        },
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
        },
        {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city":"Rome"}'},
        {"type": "function_call", "call_id": "call_2", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
        {"role": "developer", "content": "Be brief."},
    ]
    text = {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}}
    choice = {"type": "function", "name": "weather"}
    request = body(input=items, instructions="Help.", tools=[TOOL], tool_choice=choice, text=text)
    response = await client.post("/v1/responses", json=request)
    assert response.status_code == 200, response.text
    crossed = link.scripted.last(Generate)
    assert crossed.prompt.messages == [
        ChatMessage("system", "Help."),
        ChatMessage("user", "How is Rome?"),
        ChatMessage(
            "assistant",
            "I look.",
            [ToolCall("call_1", "weather", '{"city":"Rome"}'), ToolCall("call_2", "weather", "{}")],
            thought="Hm.",
        ),
        ChatMessage("tool", "sunny", tool_call_id="call_1"),
        ChatMessage("system", "Be brief."),
    ]
    assert crossed.prompt.must_call == ["weather"]
    assert json.loads(crossed.sampling.schema or "") == {"type": "object"}


async def test_nothing_is_stored_and_a_request_that_counts_on_it_hears_so(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/responses", json=body(previous_response_id="resp_1"))
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "previous_response_id"
    assert "whole conversation" in error["message"]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"background": True}, "background"),
        ({"made_up": 1}, "made_up"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"truncation": "auto"}, "truncation"),
        ({"input": []}, "input"),
        ({"reasoning": {"mode": "pro"}}, "mode"),
        ({"reasoning": {"context": "all_turns"}}, "context"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, None),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(
    client: httpx.AsyncClient, wrong: Any, param: str
) -> None:
    response = await client.post("/v1/responses", json=body(**wrong))
    assert response.status_code == 400
    if param is not None:
        assert response.json()["error"]["param"] == param


async def test_the_tokens_of_a_thought_are_counted(client: httpx.AsyncClient) -> None:
    usage = (await client.post("/v1/responses", json=body("thinker"))).json()["usage"]
    thought = len("<think>\nHm.</think>")
    assert abs(usage["output_tokens_details"]["reasoning_tokens"] - thought) <= len("</think>") + 2
    plain = (await client.post("/v1/responses", json=body())).json()["usage"]
    assert plain["output_tokens_details"]["reasoning_tokens"] == 0
