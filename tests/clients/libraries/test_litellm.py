"""LiteLLM asks through three APIs, and presents what it gets as OpenAI's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from calls import ANSWER, MESSAGES, WEATHER, Person, Place

litellm = pytest.importorskip("litellm")
pytestmark = [pytest.mark.engine, pytest.mark.libraries]
PROVIDERS = ("openai", "anthropic", "ollama_chat")
EACH = pytest.mark.parametrize("provider", PROVIDERS)


def ask(place: Place, provider: str, model: str = "tiny", **more: Any) -> Any:
    base = place.v1 if provider == "openai" else place.url
    body = {"messages": MESSAGES, "max_tokens": 24, "temperature": 0, "api_key": place.key} | more
    return litellm.completion(f"{provider}/{model}", api_base=base, num_retries=0, **body)


@EACH
def test_an_answer_in_one_piece_and_in_a_stream_is_the_same(place: Place, provider: str) -> None:
    whole = ask(place, provider)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 24
    parts = list(ask(place, provider, stream=True))
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    assert text == whole.choices[0].message.content


@EACH
def test_a_tool_is_called_and_its_result_answered(place: Place, provider: str) -> None:
    message = ask(place, provider, "agent", tools=[WEATHER]).choices[0].message
    (call,) = message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Paris"})
    result = {"role": "tool", "tool_call_id": call.id, "name": "weather", "content": "sunny"}
    again = ask(place, provider, "agent", tools=[WEATHER], messages=[*MESSAGES, message, result])
    assert again.choices[0].message.content == ANSWER


@pytest.mark.parametrize("provider", ["openai", "ollama_chat"])
def test_an_answer_follows_a_schema(place: Place, provider: str) -> None:
    answer = ask(place, provider, response_format=Person, max_tokens=200)
    assert Person.model_validate_json(answer.choices[0].message.content)


@pytest.mark.parametrize("provider", ["openai", "ollama"])
def test_texts_become_vectors(place: Place, provider: str) -> None:
    base = place.v1 if provider == "openai" else place.url
    made = litellm.embedding(f"{provider}/tiny", input=["a", "b"], api_base=base, api_key=place.key)
    assert len(made.data) == 2
    assert sum(value * value for value in made.data[0]["embedding"]) == pytest.approx(1, abs=1e-3)


@EACH
def test_errors_are_of_its_own_types(place: Place, provider: str) -> None:
    with pytest.raises(litellm.NotFoundError):
        ask(place, provider, "absent")
    with pytest.raises(litellm.AuthenticationError):
        ask(place, provider, api_key="sk-somebody-else")
