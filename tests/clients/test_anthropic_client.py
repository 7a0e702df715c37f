"""Anthropic's own client is the judge: what it cannot read, or reads otherwise than meant, is our mistake.

It takes two seconds to import: by the tests that need it, not by each process that collects tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from real_server import KEY, Server

if TYPE_CHECKING:
    import anthropic

pytestmark = pytest.mark.engine

QUESTION: list[Any] = [{"role": "user", "content": "What is FlexServe?"}]
GREEDY = {"temperature": 0}  # which the client itself no longer has
TOOLS: list[Any] = [
    {
        "name": "weather",
        "description": "Say how the weather is.",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
        },
    }
]


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[anthropic.Anthropic]:
    import anthropic

    with anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0) as client:
        yield client


def test_a_message_in_one_piece_and_in_a_stream_is_the_same(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(model="tiny", max_tokens=24, messages=QUESTION, extra_body=GREEDY)
    (block,) = whole.content
    assert block.type == "text"
    assert (whole.stop_reason, whole.usage.output_tokens) == ("max_tokens", 24)
    with client.messages.stream(model="tiny", max_tokens=24, messages=QUESTION, extra_body=GREEDY) as stream:
        assert "".join(stream.text_stream) == block.text
        final = stream.get_final_message()
    assert final.stop_reason == "max_tokens"
    assert final.usage.output_tokens == 24
    assert final.content[0].type == "text"
    assert final.content[0].text == block.text


def test_a_stop_sequence_ends_it_and_is_named(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(
        model="tiny", max_tokens=60, messages=QUESTION, extra_body=GREEDY, stop_sequences=["zzz", "memory"]
    )
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "memory")


def test_tokens_are_counted_as_an_answer_counts_them(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="tiny", messages=QUESTION, system="Be brief.")
    usage = client.messages.create(model="tiny", max_tokens=1, messages=QUESTION, system="Be brief.").usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


@pytest.mark.parametrize(
    "choice",
    [{"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "weather"}],
    ids=["any", "named"],
)
def test_a_model_that_has_to_call_a_tool_does_and_takes_its_result(
    client: anthropic.Anthropic, choice: Any
) -> None:
    answer = client.messages.create(
        model="caller", max_tokens=200, messages=QUESTION, tools=TOOLS, tool_choice=choice
    )
    assert answer.stop_reason == "tool_use"
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    assert call.name == "weather"
    assert call.input["city"] in ("Paris", "Rome")
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    turns = [
        *QUESTION,
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": [result]},
    ]
    again = client.messages.create(model="caller", max_tokens=4, messages=turns, tools=TOOLS)
    assert again.usage.output_tokens == 4


def test_a_call_in_a_stream_is_assembled_by_the_client(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model="caller",
        max_tokens=200,
        messages=QUESTION,
        tools=TOOLS,
        tool_choice={"type": "tool", "name": "weather"},
    ) as stream:
        final = stream.get_final_message()
    (call,) = [block for block in final.content if block.type == "tool_use"]
    assert call.input["city"] in ("Paris", "Rome")


def test_models_are_listed_and_found(client: anthropic.Anthropic) -> None:
    assert {model.id for model in client.models.list()} == {"tiny", "caller"}
    assert client.models.retrieve("tiny").display_name == "tiny"


def test_errors_are_of_the_clients_own_types(client: anthropic.Anthropic, server: Server) -> None:
    import anthropic

    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="absent", max_tokens=4, messages=QUESTION)
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(
            model="tiny", max_tokens=4, messages=[{"role": "user", "content": "word " * 2000}]
        )
    assert "tokens" in str(caught.value)
    stranger = anthropic.Anthropic(base_url=server.url, api_key="sk-somebody-else", max_retries=0)
    with stranger, pytest.raises(anthropic.AuthenticationError):
        stranger.messages.create(model="tiny", max_tokens=4, messages=QUESTION)
