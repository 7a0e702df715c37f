"""Requests as llama-server's clients make them, to a server of real models."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from real_server import KEY, Server

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:
        yield client


@pytest.mark.parametrize("text", ["What is FlexServe?", "Ça va, мир? 🔑", "  two  spaces\n\n", ""])
def test_tokens_are_those_of_the_text_and_back(client: httpx.Client, text: str) -> None:
    body = {"model": "tiny", "content": text, "parse_special": False, "with_pieces": True}
    tokens = client.post("/tokenize", json=body).json()["tokens"]
    numbers = [token["id"] for token in tokens]
    plain = client.post("/tokenize", json={**body, "with_pieces": False}).json()
    assert plain == {"tokens": numbers}
    back = client.post("/detokenize", json={"model": "tiny", "tokens": numbers}).json()["content"]
    assert back.strip(" ") == text.strip(" ")


def test_a_sequence_begins_with_its_token_where_it_is_asked_for(client: httpx.Client) -> None:
    body = {"model": "caller", "content": "Hi"}
    plain, whole = (
        client.post("/tokenize", json={**body, "add_special": add}).json()["tokens"] for add in (False, True)
    )
    assert whole[1:] == plain


def test_the_tokenizer_says_what_begins_a_text(client: httpx.Client) -> None:
    first = client.get("/tokenizer_info", params={"model": "caller"}).json()["bos_token"]
    body = {"model": "caller", "prompt": "Hi", "add_special_tokens": True}
    begun = client.post("/tokenize", json=body).json()["tokens"][:1]
    assert client.post("/detokenize", json={"model": "caller", "tokens": begun}).json()["prompt"] == first


def test_a_token_that_the_model_has_not_is_refused(client: httpx.Client) -> None:
    response = client.post("/detokenize", json={"model": "tiny", "tokens": [1 << 30]})
    assert response.status_code == 400
    assert "no such token" in response.json()["error"]["message"]


def test_a_template_is_applied_as_an_answer_applies_it(client: httpx.Client) -> None:
    turns = [{"role": "user", "content": "What is FlexServe?"}]
    prompt = client.post("/apply-template", json={"model": "tiny", "messages": turns}).json()["prompt"]
    assert "What is FlexServe?" in prompt
    settings = {"model": "tiny", "temperature": 0}
    continued = client.post("/completion", json={**settings, "prompt": prompt, "n_predict": 12}).json()
    answered = client.post(
        "/v1/chat/completions", json={**settings, "messages": turns, "max_tokens": 12}
    ).json()
    assert continued["content"] == answered["choices"][0]["message"]["content"]
    assert continued["stop_type"] == "limit"


def test_a_stop_word_is_named(client: httpx.Client) -> None:
    body = {"model": "tiny", "prompt": "FlexServe is", "temperature": 0, "n_predict": 60, "stop": ["memory"]}
    answer = client.post("/completion", json=body).json()
    assert (answer["stop_type"], answer["stopping_word"]) == ("word", "memory")


def test_a_model_that_knows_no_gaps_says_so(client: httpx.Client) -> None:
    response = client.post("/infill", json={"model": "tiny", "input_prefix": "a", "input_suffix": "b"})
    assert response.status_code == 400
    assert "gaps" in response.json()["error"]["message"]


def test_properties_are_those_of_the_server(client: httpx.Client) -> None:
    props = client.get("/props?model=tiny").json()
    assert (props["default_generation_settings"]["n_ctx"], props["total_slots"]) == (512, 4)
    assert len(client.get("/slots?model=tiny").json()) == 4
