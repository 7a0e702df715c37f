"""LangChain asks through OpenAI's two APIs, Anthropic's and ollama's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anthropic
import ollama
import openai
import pytest
from calls import ANSWER, QUESTION, Person, Place, weather

langchain_openai = pytest.importorskip("langchain_openai")
langchain_anthropic = pytest.importorskip("langchain_anthropic")
langchain_ollama = pytest.importorskip("langchain_ollama")
messages = pytest.importorskip("langchain_core.messages")
pytestmark = [pytest.mark.engine, pytest.mark.libraries]


def by_openai(place: Place, model: str, limit: int, **more: Any) -> Any:
    more = {"base_url": place.v1, "api_key": place.key, "max_retries": 0} | more
    return langchain_openai.ChatOpenAI(model=model, temperature=0, max_tokens=limit, **more)


def by_responses(place: Place, model: str, limit: int, **more: Any) -> Any:
    return by_openai(place, model, limit, use_responses_api=True, **more)


def by_anthropic(place: Place, model: str, limit: int, **more: Any) -> Any:
    more = {"base_url": place.url, "api_key": place.key, "max_retries": 0} | more
    return langchain_anthropic.ChatAnthropic(model=model, temperature=0, max_tokens=limit, **more)


def by_ollama(place: Place, model: str, limit: int, *, api_key: str | None = None) -> Any:
    headers = {"headers": {"Authorization": f"Bearer {api_key or place.key}"}}
    return langchain_ollama.ChatOllama(
        model=model, temperature=0, num_predict=limit, base_url=place.url, client_kwargs=headers
    )


Chat = Callable[..., Any]
EACH = pytest.mark.parametrize("chat", [by_openai, by_responses, by_anthropic, by_ollama])


@EACH
def test_an_answer_in_one_piece_and_in_a_stream_is_the_same(place: Place, chat: Chat) -> None:
    model = chat(place, "tiny", 24)
    whole = model.invoke(QUESTION)
    assert whole.usage_metadata["output_tokens"] == 24
    assert "".join(part.text for part in model.stream(QUESTION)) == whole.text


@EACH
def test_a_tool_is_called_and_its_result_answered(place: Place, chat: Chat) -> None:
    model = chat(place, "agent", 60).bind_tools([weather])
    turns = [messages.HumanMessage(QUESTION), model.invoke(QUESTION)]
    (call,) = turns[-1].tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Paris"})
    turns.append(messages.ToolMessage("sunny", tool_call_id=call["id"]))
    assert model.invoke(turns).text == ANSWER
    whole = sum_of(model.stream(QUESTION))
    assert [(one["name"], one["args"]) for one in whole.tool_calls] == [("weather", {"city": "Paris"})]


def sum_of(parts: Any) -> Any:
    """Return the message that the parts of a stream are together."""
    whole = None
    for part in parts:
        whole = part if whole is None else whole + part
    return whole


@EACH
def test_an_answer_is_an_object(place: Place, chat: Chat) -> None:
    person = chat(place, "caller", 200).with_structured_output(Person).invoke(QUESTION)
    assert isinstance(person, Person)


def test_texts_become_vectors(place: Place) -> None:
    by_openai = langchain_openai.OpenAIEmbeddings(
        model="tiny", base_url=place.v1, api_key=place.key, check_embedding_ctx_length=False
    )
    headers = {"headers": {"Authorization": f"Bearer {place.key}"}}
    by_ollama = langchain_ollama.OllamaEmbeddings(model="tiny", base_url=place.url, client_kwargs=headers)
    (first, second), (other, _) = (one.embed_documents(["a", "b"]) for one in (by_openai, by_ollama))
    assert first == pytest.approx(other, abs=1e-6)
    assert first != second


@EACH
def test_errors_are_those_of_the_client_below(place: Place, chat: Chat) -> None:
    absent, stranger = {
        by_anthropic: (anthropic.NotFoundError, anthropic.AuthenticationError),
        by_ollama: (ollama.ResponseError, ollama.ResponseError),
    }.get(chat, (openai.NotFoundError, openai.AuthenticationError))
    with pytest.raises(absent):
        chat(place, "absent", 4).invoke(QUESTION)
    with pytest.raises(stranger):
        chat(place, "tiny", 4, api_key="sk-somebody-else").invoke(QUESTION)
