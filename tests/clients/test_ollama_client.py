"""Ollama's own client is the judge: what it cannot read, or reads otherwise than meant, is our mistake."""

from __future__ import annotations

import json
from typing import Any

import ollama
import pytest
from real_server import KEY, Server

pytestmark = pytest.mark.engine

QUESTION: list[Any] = [{"role": "user", "content": "What is FlexServe?"}]
GREEDY = {"temperature": 0, "num_predict": 24}


@pytest.fixture(scope="module")
def client(server: Server) -> ollama.Client:
    return ollama.Client(server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)


def test_a_chat_in_one_piece_and_in_a_stream_is_the_same(client: ollama.Client) -> None:
    whole = client.chat("tiny", QUESTION, options=GREEDY)
    assert (whole.done_reason, whole.eval_count) == ("length", 24)
    pieces = list(client.chat("tiny", QUESTION, options=GREEDY, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert pieces[-1].done
    assert pieces[-1].prompt_eval_count == whole.prompt_eval_count


def test_a_prompt_is_answered_as_a_question_or_continued_as_it_is(client: ollama.Client) -> None:
    asked = client.generate("tiny", "What is FlexServe?", options=GREEDY)
    assert asked.response == client.chat("tiny", QUESTION, options=GREEDY).message.content
    raw = client.generate("tiny", "FlexServe is", raw=True, options=GREEDY)
    assert raw.eval_count == 24
    assert (raw.prompt_eval_count or 0) < (asked.prompt_eval_count or 0)


def test_an_answer_follows_a_schema(client: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"name": {"enum": ["Ada", "Bob"]}}, "required": ["name"]}
    answer = client.chat("tiny", QUESTION, format=schema, options={"temperature": 0, "num_predict": 100})
    assert json.loads(answer.message.content or "")["name"] in ("Ada", "Bob")


def test_log_probabilities_are_of_the_text(client: ollama.Client) -> None:
    answer = client.chat("tiny", QUESTION, options=GREEDY, logprobs=True, top_logprobs=2)
    chosen = answer.logprobs or []
    assert "".join(one.token for one in chosen) == answer.message.content
    assert all(one.top_logprobs and one.top_logprobs[0].token == one.token for one in chosen)


def test_texts_become_vectors(client: ollama.Client) -> None:
    made = client.embed("tiny", ["What is FlexServe?", "It rains."])
    assert len(made.embeddings) == 2
    assert sum(value * value for value in made.embeddings[0]) == pytest.approx(1, abs=1e-4)


def test_models_are_listed_shown_and_seen_in_memory(client: ollama.Client) -> None:
    listed = {model.model: model for model in client.list().models}
    assert set(listed) == {"tiny", "caller"}
    assert listed["tiny"].details is not None
    assert listed["tiny"].details.family == "llama"
    shown = client.show("tiny")
    assert (shown.modelinfo or {})["llama.context_length"] == 1024
    client.generate("tiny", "", keep_alive="10m")  # loads it
    assert "tiny" in {model.model for model in client.ps().models}
    client.generate("tiny", "", keep_alive=0)  # lets it go
    for _ in range(100):
        if "tiny" not in {model.model for model in client.ps().models}:
            break
    else:
        pytest.fail("it was not let go")


def test_the_store_is_not_changed_by_requests(client: ollama.Client) -> None:
    assert client.pull("tiny").status == "success"
    for change in (
        lambda: client.pull("absent"),
        lambda: client.copy("tiny", "other"),
        lambda: client.delete("tiny"),
    ):
        with pytest.raises(ollama.ResponseError, match="flexserve "):
            change()


def test_errors_are_of_the_clients_own_type(client: ollama.Client, server: Server) -> None:
    with pytest.raises(ollama.ResponseError) as absent:
        client.chat("absent", QUESTION)
    assert absent.value.status_code == 404
    with pytest.raises(ollama.ResponseError) as unknown:
        client.chat("tiny", QUESTION, options={"num_ctx": 1 << 20})
    assert "num_ctx" in unknown.value.error
    stranger = ollama.Client(server.url, headers={"Authorization": "Bearer sk-somebody-else"})
    with pytest.raises(ollama.ResponseError) as refused:
        stranger.list()
    assert refused.value.status_code == 401
