"""Real weights through a real server: a chat that ends where it should, and the perplexity of a text."""

from __future__ import annotations

import math
from collections.abc import Iterator

import openai
import pytest
from weights import CONTEXT, PARAGRAPH, THREADS, Weights, memory

from flexserve.harness.served import Served, own_environment

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

SCORED = 16  # tokens of a prompt that one graph scores


@pytest.fixture(scope="module")
def client(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    folder = tmp_path_factory.mktemp("served")
    arguments = ["--models", str(weights.root), "--device-key", str(weights.key), "--memory", memory()]
    arguments += ["--threads", str(THREADS), "--context", str(CONTEXT)]
    with Served(own_environment(folder), folder / "log", arguments) as served:
        yield openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0, timeout=600)
        served.stop()


QUESTIONS = ("Name three colors.", "Say hello to Ada.", "What is 2 + 2?", "Who are you?")


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_chat_stops_where_it_should(client: openai.OpenAI, weights: Weights, question: str) -> None:
    messages: list = [{"role": "user", "content": question}]
    answer = client.chat.completions.create(model="smollm2", messages=messages, temperature=0, max_tokens=300)
    choice = answer.choices[0]
    with weights.plain("smollm2") as plain:
        assert (choice.message.content, choice.finish_reason) == plain.chat(question, 300)
    assert choice.finish_reason == "stop"
    assert choice.message.content
    assert "<|" not in choice.message.content
    stream = client.chat.completions.create(
        model="smollm2", messages=messages, temperature=0, max_tokens=300, stream=True
    )
    assert "".join(part.choices[0].delta.content or "" for part in stream) == choice.message.content


def test_a_conversation_goes_on(client: openai.OpenAI) -> None:
    messages: list = [{"role": "user", "content": "Say hello to Ada."}]
    first = client.chat.completions.create(model="smollm2", messages=messages, temperature=0, max_tokens=200)
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "What is 2 + 2?"},
    ]
    second = client.chat.completions.create(model="smollm2", messages=messages, temperature=0, max_tokens=200)
    assert second.choices[0].finish_reason == "stop"
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) > 0


@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
def test_the_perplexity_of_a_text_is_plain_llama_cpps(
    client: openai.OpenAI, weights: Weights, model: str
) -> None:
    answer = client.completions.create(model=model, prompt=PARAGRAPH, max_tokens=0, echo=True, logprobs=0)
    found = answer.choices[0].logprobs
    assert found is not None
    scores = [score for score in found.token_logprobs or [] if score is not None]
    with weights.plain(model, batch=SCORED) as plain:
        expected = plain.scores(plain.tokens(PARAGRAPH))
    assert len(scores) == len(expected)
    assert perplexity(scores) == pytest.approx(perplexity(expected), rel=1e-3)
    assert 20 < perplexity(scores) < 400, "it knows English, and has not read this"


def perplexity(scores: list[float]) -> float:
    return math.exp(-sum(scores) / len(scores))
