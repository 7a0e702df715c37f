"""OpenAI's own client, asking by the Responses API, is the judge."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest
from real_server import Server

pytestmark = pytest.mark.engine

QUESTION = "What is FlexServe?"
TOOLS: list[Any] = [
    {
        "type": "function",
        "name": "weather",
        "description": "Say how the weather is.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    }
]


class Person(pydantic.BaseModel):
    name: Literal["Ada", "Bob"]
    age: int = pydantic.Field(ge=18, le=99)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.openai() as client:
        yield client


def test_a_response_in_one_piece_and_in_a_stream_is_the_same(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="tiny", input=QUESTION, temperature=0, max_output_tokens=24)
    assert whole.status == "incomplete"
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert whole.usage is not None
    assert whole.usage.output_tokens == 24
    with client.responses.stream(model="tiny", input=QUESTION, temperature=0, max_output_tokens=24) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert text == whole.output_text


def test_instructions_come_before_the_input(client: openai.OpenAI) -> None:
    plain = client.responses.create(model="tiny", input=QUESTION, max_output_tokens=1)
    told = client.responses.create(
        model="tiny", input=QUESTION, instructions="Be brief.", max_output_tokens=1
    )
    assert plain.usage is not None
    assert told.usage is not None
    assert told.usage.input_tokens > plain.usage.input_tokens
    assert told.instructions == "Be brief."


def test_an_answer_follows_the_schema(client: openai.OpenAI) -> None:
    answer = client.responses.parse(model="tiny", input=QUESTION, text_format=Person, max_output_tokens=200)
    assert isinstance(answer.output_parsed, Person)


def test_log_probabilities_are_of_the_text(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="tiny",
        input=QUESTION,
        temperature=0,
        max_output_tokens=5,
        top_logprobs=2,
        include=["message.output_text.logprobs"],
    )
    (message,) = answer.output
    assert message.type == "message"
    content = message.content[0]
    assert content.type == "output_text"
    assert "".join(one.token for one in content.logprobs or []) == content.text


def test_a_call_and_its_result_go_back_and_forth(client: openai.OpenAI) -> None:
    turns: list[Any] = [{"role": "user", "content": QUESTION}]
    answer = client.responses.create(
        model="caller",
        input=turns,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        max_output_tokens=200,
    )
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    turns += answer.output
    turns.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
    again = client.responses.create(model="caller", input=turns, tools=TOOLS, max_output_tokens=4)
    assert again.usage is not None
    assert answer.usage is not None
    assert again.usage.input_tokens > answer.usage.input_tokens


def test_a_call_in_a_stream_is_assembled_by_the_client(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model="caller",
        input=QUESTION,
        tools=TOOLS,
        tool_choice={"type": "function", "name": "weather"},
        max_output_tokens=200,
    ) as stream:
        final = stream.get_final_response()
    (call,) = [item for item in final.output if item.type == "function_call"]
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")


def test_errors_are_of_the_clients_own_types(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="absent", input=QUESTION)
    with pytest.raises(openai.BadRequestError) as stored:
        client.responses.create(model="tiny", input=QUESTION, previous_response_id="resp_1")
    assert stored.value.param == "previous_response_id"
