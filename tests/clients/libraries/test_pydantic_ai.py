"""Pydantic AI runs agents through OpenAI's two APIs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from calls import ANSWER, QUESTION, Person, Place, weather

pydantic_ai = pytest.importorskip("pydantic_ai")
openai_models = pytest.importorskip("pydantic_ai.models.openai")
openai_provider = pytest.importorskip("pydantic_ai.providers.openai")
pytestmark = [pytest.mark.engine, pytest.mark.libraries]

GREEDY = {"temperature": 0.0, "max_tokens": 24}


def by_openai(place: Place, model: str, key: str | None = None) -> Any:
    provider = openai_provider.OpenAIProvider(base_url=place.v1, api_key=key or place.key)
    return openai_models.OpenAIChatModel(model, provider=provider)


def by_responses(place: Place, model: str, key: str | None = None) -> Any:
    provider = openai_provider.OpenAIProvider(base_url=place.v1, api_key=key or place.key)
    return openai_models.OpenAIResponsesModel(model, provider=provider)


Model = Callable[..., Any]
EACH = pytest.mark.parametrize("model", [by_openai, by_responses])


@EACH
def test_an_answer_in_one_piece_and_in_a_stream_is_the_same(place: Place, model: Model) -> None:
    agent = pydantic_ai.Agent(model(place, "tiny"), model_settings=GREEDY)
    whole = agent.run_sync(QUESTION).output

    async def streamed() -> str:
        async with agent.run_stream(QUESTION) as answer:
            return "".join([text async for text in answer.stream_text(delta=True)])

    assert asyncio.run(streamed()) == whole


@EACH
def test_an_agent_calls_a_tool_and_answers_its_result(place: Place, model: Model) -> None:
    asked = []

    def asked_weather(city: str) -> str:
        asked.append(city)
        return weather(city)

    tool = pydantic_ai.Tool(asked_weather, name="weather", description=weather.__doc__)
    agent = pydantic_ai.Agent(model(place, "agent"), tools=[tool], model_settings={"max_tokens": 60})
    assert agent.run_sync(QUESTION).output == ANSWER
    assert asked == ["Paris"]


@pytest.mark.parametrize("output", ["NativeOutput", "ToolOutput"])
@EACH
def test_an_answer_is_an_object(place: Place, model: Model, output: str) -> None:
    form = getattr(pydantic_ai, output)(Person)
    settings = {"max_tokens": 200, "parallel_tool_calls": False}
    agent = pydantic_ai.Agent(model(place, "caller"), output_type=form, model_settings=settings)
    assert isinstance(agent.run_sync(QUESTION).output, Person)


@EACH
def test_errors_have_the_servers_status(place: Place, model: Model) -> None:
    for asked, status in ((model(place, "absent"), 404), (model(place, "tiny", "sk-somebody-else"), 401)):
        with pytest.raises(pydantic_ai.ModelHTTPError) as caught:
            pydantic_ai.Agent(asked).run_sync(QUESTION)
        assert caught.value.status_code == status
