"""OpenAI's own client is the judge: what it cannot read, or reads otherwise than meant, is our mistake."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import openai
import pydantic
import pytest
from real_server import Server

pytestmark = pytest.mark.engine

QUESTION: list[Any] = [{"role": "user", "content": "What is FlexServe?"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Say how the weather is.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {}}}},
]


@pytest.fixture(scope="module", params=["directly", "sealed"])
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[openai.OpenAI]:
    """A client of the server: one that asks it directly, and one that does by `flexserve connect`."""
    asked = server if request.param == "directly" else request.getfixturevalue("connected")
    with asked.openai() as client:
        yield client


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"tiny", "caller"}
    assert client.models.retrieve("tiny").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("absent")


def test_a_chat_in_one_piece_and_in_a_stream_is_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=QUESTION, temperature=0, max_tokens=24)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 24
    assert whole.usage.prompt_tokens_details is not None
    assert isinstance(whole.usage.prompt_tokens_details.cached_tokens, int)
    stream = client.chat.completions.create(
        model="tiny",
        messages=QUESTION,
        temperature=0,
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_log_probabilities_are_of_the_text(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=QUESTION, temperature=0, max_tokens=5, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(one.token for one in logprobs.content) == answer.choices[0].message.content
    assert all(len(one.top_logprobs) == 2 and one.logprob <= 0 for one in logprobs.content)


def test_a_completion_in_one_piece_and_in_a_stream_is_the_same(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt="FlexServe is", temperature=0, max_tokens=12)
    stream = client.completions.create(
        model="tiny", prompt="FlexServe is", temperature=0, max_tokens=12, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=QUESTION, temperature=0, max_tokens=60, stop=["memory"]
    )
    assert answer.choices[0].finish_reason == "stop"
    assert "memory" not in (answer.choices[0].message.content or "memory")


def test_vectors_are_of_length_one_alike_in_both_forms_and_close_for_close_texts(
    client: openai.OpenAI,
) -> None:
    texts = ["What is FlexServe?", "Tell me what FlexServe is.", "It rains, and the cat sleeps on the mat."]
    coded = client.embeddings.create(model="tiny", input=texts)  # the client asks for base64 by itself
    plain = client.embeddings.create(model="tiny", input=texts, encoding_format="float")
    vectors = np.array([one.embedding for one in coded.data])
    assert np.allclose(vectors, [one.embedding for one in plain.data], atol=1e-6)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert coded.usage.prompt_tokens == plain.usage.total_tokens > 0


def test_a_vector_does_not_depend_on_what_is_asked_beside_it(client: openai.OpenAI) -> None:
    alone = client.embeddings.create(model="tiny", input="one text").data[0].embedding
    beside = client.embeddings.create(model="tiny", input=["other", "one text"]).data[1].embedding
    assert np.allclose(alone, beside, atol=1e-6)


class Person(pydantic.BaseModel):
    name: Literal["Ada", "Bob"]
    age: int = pydantic.Field(ge=18, le=99)
    friends: list[Literal["Cy", "Di"]] = pydantic.Field(max_length=2)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_follows_the_schema_whatever_the_model_would_rather_say(
    client: openai.OpenAI, temperature: float
) -> None:
    for model in ("tiny", "caller"):
        answer = client.chat.completions.parse(
            model=model, messages=QUESTION, response_format=Person, temperature=temperature, max_tokens=200
        )
        person = answer.choices[0].message.parsed
        assert isinstance(person, Person)
        assert person.name in ("Ada", "Bob")
        assert 18 <= person.age <= 99


def test_json_mode_answers_json(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=QUESTION,
        response_format={"type": "json_object"},
        temperature=0,
        max_tokens=300,
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_a_schema_that_cannot_be_followed_is_refused(client: openai.OpenAI) -> None:
    schema: dict[str, object] = {"type": "object", "properties": {"a": {"$ref": "https://example.org/a"}}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="tiny",
            messages=QUESTION,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        )
    if caught.value.code == "secure_world_inside":
        raise caught.value
    assert caught.value.code == "schema_unsupported"


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}], ids=["required", "named"]
)
def test_a_model_that_has_to_call_a_tool_does(client: openai.OpenAI, choice: Any) -> None:
    answer = client.chat.completions.create(
        model="caller",
        messages=QUESTION,
        tools=TOOLS,
        tool_choice=choice,
        parallel_tool_calls=False,
        max_tokens=200,
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    arguments = json.loads(call.function.arguments)
    if call.function.name == "weather":
        assert arguments["city"] in ("Paris", "Rome")
    else:
        assert (call.function.name, choice) == ("stop", "required")
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    turns = [*QUESTION, answer.choices[0].message, result]
    again = client.chat.completions.create(model="caller", messages=turns, tools=TOOLS, max_tokens=4)
    assert again.usage is not None
    assert answer.usage is not None
    assert again.usage.prompt_tokens > answer.usage.prompt_tokens


def test_a_call_in_a_stream_is_assembled_by_the_client(client: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "function": {"name": "weather"}}
    with client.chat.completions.stream(
        model="caller", messages=QUESTION, tools=TOOLS, tool_choice=choice, max_tokens=200
    ) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or []
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


def test_a_model_whose_template_knows_no_tools_can_be_made_to_call_one(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=QUESTION,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=200,
    )
    [call] = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name in [tool["function"]["name"] for tool in TOOLS]


def test_errors_are_of_the_clients_own_types(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="absent", messages=QUESTION)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="absent", input="x")
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "word " * 2000}])
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.chat.completions.create(model="tiny", messages=QUESTION, verbosity="low")
    assert unsupported.value.param == "verbosity"
    with server.openai(key="sk-somebody-else") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_extensions_are_understood(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=QUESTION,
        max_tokens=2,
        user="somebody",
        extra_body={"keep_alive": "10m", "flexserve": {"next_model": "caller", "priority": 1}},
    )
    assert answer.choices[0].message.content


def test_a_unix_socket_serves_the_same(server: Server) -> None:
    assert server.unix.stat().st_mode & 0o777 == 0o600
    with server.openai(over_unix=True) as client:
        answer = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=2)
    assert answer.choices[0].message.content


def test_what_was_read_before_is_reused_for_the_same_user_and_nobody_else(client: openai.OpenAI) -> None:
    text = "Tell me about FlexServe, its secure world, its memory and its models, one after the other. " * 2

    def cached(user: str) -> int:
        answer = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": text}], max_tokens=2, user=user
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    assert cached("ada") == 0
    assert cached("bob") == 0
    assert cached("ada") > 20
