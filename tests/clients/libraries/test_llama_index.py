"""LlamaIndex asks through OpenAI's API."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from calls import ANSWER, QUESTION, Person, Place, weather

llms = pytest.importorskip("llama_index.core.llms")
tools = pytest.importorskip("llama_index.core.tools")
openai_like = pytest.importorskip("llama_index.llms.openai_like")
embeddings = pytest.importorskip("llama_index.embeddings.openai_like")
pytestmark = [pytest.mark.engine, pytest.mark.libraries]


def chat(place: Place, model: str = "tiny", limit: int = 24, **more: Any) -> Any:
    given = {"api_base": place.v1, "api_key": place.key, "max_retries": 0, "temperature": 0} | more
    return openai_like.OpenAILike(
        model=model,
        max_tokens=limit,
        context_window=512,
        is_chat_model=True,
        is_function_calling_model=True,
        should_use_structured_outputs=True,
        **given,
    )


def question() -> list[Any]:
    return [llms.ChatMessage(role="user", content=QUESTION)]


def test_an_answer_in_one_piece_and_in_a_stream_is_the_same(place: Place) -> None:
    whole = chat(place).chat(question())
    assert "".join(part.delta for part in chat(place).stream_chat(question())) == whole.message.content


def test_a_text_is_continued(place: Place) -> None:
    plain = openai_like.OpenAILike(
        model="tiny", api_base=place.v1, api_key=place.key, max_tokens=8, temperature=0, is_chat_model=False
    )
    assert plain.complete("FlexServe is").text


def test_a_tool_is_called_and_its_result_answered(place: Place) -> None:
    tool = tools.FunctionTool.from_defaults(weather)
    model = chat(place, "agent", 60)
    answer = model.chat_with_tools([tool], user_msg=QUESTION)
    (call,) = model.get_tool_calls_from_response(answer)
    assert (call.tool_name, call.tool_kwargs) == ("weather", {"city": "Paris"})
    result = llms.ChatMessage(
        role="tool", content="sunny", additional_kwargs={"tool_call_id": call.tool_id, "name": "weather"}
    )
    history = [*question(), answer.message, result]
    assert model.chat_with_tools([tool], chat_history=history).message.content == ANSWER


def test_an_answer_is_an_object(place: Place) -> None:
    person = chat(place, "caller", 200).as_structured_llm(Person).chat(question()).raw
    assert isinstance(person, Person)


def test_texts_become_vectors(place: Place) -> None:
    model = embeddings.OpenAILikeEmbedding(model_name="tiny", api_base=place.v1, api_key=place.key)
    first, second = model.get_text_embedding_batch(["a", "b"])
    assert sum(value * value for value in first) == pytest.approx(1, abs=1e-3)
    assert first != second


def test_errors_are_those_of_openais_client(place: Place) -> None:
    with pytest.raises(openai.NotFoundError):
        chat(place, "absent").chat(question())
    with pytest.raises(openai.AuthenticationError):
        chat(place, api_key="sk-somebody-else").chat(question())
