"""llama-server's own API over a scripted world, and its aliases of other routes."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx
import pytest

from flexserve.protocol.prompts import ChatPrompt, InfillPrompt, Snippet, TextPrompt, TokenPrompt
from flexserve.protocol.requests import Convert, Generate
from flexserve.testing.script import Behaviour, Script
from flexserve.testing.scripted_link import ScriptedLink
from flexserve.testing.scripted_world import TEMPLATE

pytestmark = pytest.mark.anyio
USER = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def link() -> ScriptedLink:
    return ScriptedLink(Script(models={"tiny": Behaviour()}))


async def test_a_completion_needs_no_model_where_there_is_one(
    client: httpx.AsyncClient, link: ScriptedLink
) -> None:
    answer = (await client.post("/completion", json={"prompt": "Once", "n_predict": 2})).json()
    assert answer["content"] == "Hello,"
    assert (answer["stop"], answer["stop_type"], answer["model"]) == (True, "limit", "tiny")
    assert (answer["tokens_predicted"], answer["tokens_evaluated"]) == (2, 7)
    assert answer["timings"]["predicted_n"] == 2
    assert answer["generation_settings"]["n_predict"] == 2
    assert link.scripted.last(Generate).prompt == TextPrompt("Once")
    endless = (await client.post("/completions", json={"prompt": ["Once"], "n_predict": -1})).json()
    assert (endless["content"], endless["stop_type"]) == ("Hello, world!", "eos")
    assert link.scripted.last(Generate).sampling.max_tokens is None


async def test_a_stream_ends_with_what_it_took(client: httpx.AsyncClient) -> None:
    response = await client.post("/completion", json={"prompt": "Once", "stream": True})
    *said, end = [json.loads(line[6:]) for line in response.text.splitlines() if line]
    assert "".join(one["content"] for one in said) == "Hello, world!"
    assert not any(one["stop"] for one in said)
    assert (end["stop"], end["content"], end["tokens_predicted"]) == (True, "", 4)


async def test_probabilities_are_said_where_they_are_asked_for(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/completion", json={"prompt": "Once", "n_probs": 2})).json()
    first = answer["completion_probabilities"][0]
    assert (first["token"], len(first["top_logprobs"])) == ("Hello", 2)


async def test_text_becomes_tokens_and_tokens_text(client: httpx.AsyncClient, link: ScriptedLink) -> None:
    assert (await client.post("/tokenize", json={"content": "Hi"})).json() == {"tokens": [72, 105]}
    pieces = (await client.post("/tokenize", json={"content": "H", "with_pieces": True})).json()
    assert pieces == {"tokens": [{"id": 72, "piece": "H"}]}
    assert (await client.post("/detokenize", json={"tokens": [72, 105]})).json()["content"] == "Hi"
    rendered = await client.post("/apply-template", json={"messages": USER})
    assert rendered.json() == {"prompt": "user: Hi\n"}
    assert not link.scripted.every(Generate)


async def test_the_tokenizer_speaks_as_vllms_does(client: httpx.AsyncClient) -> None:
    body = {"prompt": "Hi", "add_special_tokens": False}
    assert (await client.post("/tokenize", json=body)).json() == {"tokens": [72, 105]}
    assert (await client.post("/detokenize", json={"tokens": [72, 105]})).json()["prompt"] == "Hi"
    info = (await client.get("/tokenizer_info")).json()
    assert (info["bos_token"], info["eos_token"]) == ("<s>", None)
    assert info["chat_template"]
    assert (await client.get("/tokenizer_info", params={"model": ""})).status_code == 400


async def test_a_gap_crosses_with_the_texts_around_it(client: httpx.AsyncClient, link: ScriptedLink) -> None:
    extra = [{"filename": "a.py", "text": "import b"}]
    body = {"input_prefix": "def f(", "input_suffix": "return x", "input_extra": extra, "prompt": "x"}
    response = await client.post("/infill", json=body)
    assert response.json()["content"] == "Hello, world!"
    assert link.scripted.last(Generate).prompt == InfillPrompt(
        "def f(", "return x", "x", [Snippet("a.py", "import b")]
    )


async def test_vectors_come_in_its_own_form(client: httpx.AsyncClient) -> None:
    for body in ({"content": "a"}, {"input": ["a"]}):
        (made,) = (await client.post("/embedding", json=body)).json()
        assert made["index"] == 0
        assert len(made["embedding"][0]) == 2


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"content": "a"}),
        ("/detokenize", {"tokens": [1]}),
        ("/embedding", {"content": "a"}),
        ("/rerank", {"query": "a", "documents": ["b"]}),
        ("/completion", {"prompt": "a"}),
        ("/infill", {"input_prefix": "a", "input_suffix": "b"}),
        ("/apply-template", {"messages": USER}),
    ],
)
async def test_a_field_that_nobody_knows_is_refused(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    assert (await client.post(path, json=body)).status_code == 200
    assert (await client.post(path, json={**body, "store": True})).status_code == 200
    for name in ("made_up", "audio"):
        response = await client.post(path, json={**body, name: 1})
        assert response.status_code == 400
        assert name in response.json()["error"]["message"]


async def test_how_a_model_is_served_is_said(client: httpx.AsyncClient) -> None:
    props = (await client.get("/props")).json()
    assert (props["total_slots"], props["model_alias"]) == (4, "tiny")
    assert props["default_generation_settings"]["n_ctx"] == 4096
    slots = (await client.get("/slots?model=tiny")).json()
    assert [slot["is_processing"] for slot in slots] == [False] * 4
    missing = await client.get("/props?model=absent")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat/completions", {"messages": USER}),
        ("/v1/chat/completions", {"messages": USER}),
        ("/responses", {"input": "Hi"}),
        ("/v1/completions", {"prompt": "Hi"}),
        ("/v1/embeddings", {"input": "Hi"}),
        ("/v1/messages", {"messages": USER, "max_tokens": 5}),
    ],
)
async def test_other_routes_go_without_v1_and_without_a_model(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200
    assert answer.json()["model"] == "tiny"


async def test_models_and_health_are_found_where_llama_server_has_them(client: httpx.AsyncClient) -> None:
    for path in ("/models", "/v1/models"):
        (card,) = (await client.get(path)).json()["data"]
        assert (card["id"], card["meta"]["n_ctx_train"]) == ("tiny", 8192)
    assert (await client.get("/v1/health")).json()["status"] == "ok"


async def test_a_prompt_may_be_tokens_with_texts_among_them(
    client: httpx.AsyncClient, link: ScriptedLink
) -> None:
    for prompt in ([1, 2], [1, "two"], [[1, "two"]]):
        response = await client.post("/completion", json={"prompt": prompt, "return_tokens": True})
        assert len(response.json()["tokens"]) == 4
        assert "completion_probabilities" not in response.json()
    assert link.scripted.last(Generate).prompt == TokenPrompt([1, "two"])


async def test_several_prompts_get_a_list_of_answers(client: httpx.AsyncClient, link: ScriptedLink) -> None:
    prompts = ["Once", [1, "two"], {"prompt_string": "Twice"}]
    answers = (await client.post("/completion", json={"prompt": prompts, "n_predict": 2})).json()
    assert [(one["index"], one["content"], one["prompt"]) for one in answers] == [
        (0, "Hello,", "Once"),
        (1, "Hello,", ""),
        (2, "Hello,", "Twice"),
    ]
    sent = [message.prompt for message in link.scripted.received if isinstance(message, Generate)]
    assert sent == [TextPrompt("Once"), TokenPrompt([1, "two"]), TextPrompt("Twice")]
    body = {"prompt": ["a", "b"], "n_predict": 2, "stream": True}
    lines = (await client.post("/completion", json=body)).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line]
    said = ["".join(one["content"] for one in chunks if one["index"] == index) for index in (0, 1)]
    assert said == ["Hello,", "Hello,"]
    assert [one["prompt"] for one in chunks if one["stop"]] == ["a", "b"]


@pytest.mark.parametrize("name", ["n", "n_cmpl"])
async def test_each_prompt_gets_as_many_answers_as_are_wanted(client: httpx.AsyncClient, name: str) -> None:
    answers = (await client.post("/completion", json={"prompt": ["one", "two"], name: 2})).json()
    assert [(one["index"], one["prompt"]) for one in answers] == [
        (0, "one"),
        (1, "one"),
        (2, "two"),
        (3, "two"),
    ]
    chat = (await client.post("/v1/chat/completions", json={"messages": USER, name: 2})).json()
    assert [choice["index"] for choice in chat["choices"]] == [0, 1]
    both = await client.post("/completion", json={"prompt": "one", "n": 2, "n_cmpl": 3})
    assert both.status_code == 400


async def test_only_what_is_asked_for_is_said(client: httpx.AsyncClient) -> None:
    fields = ["content", "generation_settings/n_predict", "no/such"]
    body = {"prompt": "Once", "n_predict": 2, "response_fields": fields}
    answer = (await client.post("/completion", json=body)).json()
    assert answer == {"content": "Hello,", "generation_settings/n_predict": 2}


async def test_probabilities_behind_the_samplers_are_no_logarithms(
    client: httpx.AsyncClient, link: ScriptedLink
) -> None:
    body = {"prompt": "Once", "n_probs": 2, "post_sampling_probs": True}
    (first, *_) = (await client.post("/completion", json=body)).json()["completion_probabilities"]
    assert link.scripted.last(Generate).sampling.after_samplers
    assert first["prob"] == pytest.approx(math.exp(-0.5))
    assert [one["prob"] for one in first["top_probs"]] == pytest.approx([math.exp(-1), math.exp(-2)])
    assert "logprob" not in first


async def test_the_pace_of_an_answer_counts_its_steps_and_is_always_a_number(
    client: httpx.AsyncClient,
) -> None:
    one = (await client.post("/completion", json={"prompt": "x", "n_predict": 1})).json()["timings"]
    assert (one["predicted_n"], one["predicted_per_second"], one["predicted_per_token_ms"]) == (1, 0, 0)
    two = (await client.post("/completion", json={"prompt": "x", "n_predict": 2})).json()["timings"]
    assert two["predicted_per_second"] == pytest.approx(1000 / 3.5)
    assert (two["cache_n"], two["prompt_n"]) == (3, 4)


async def test_the_template_is_shown(client: httpx.AsyncClient) -> None:
    assert (await client.get("/props")).json()["chat_template"] == TEMPLATE
    assert (await client.post("/api/show", json={"model": "tiny"})).json()["template"] == TEMPLATE


async def test_texts_are_ranked_the_best_first(client: httpx.AsyncClient) -> None:
    texts = ["a dog", "the red dog", "no"]
    for path in ("/v1/rerank", "/rerank", "/reranking"):
        body = {"query": "the red dog", "documents": texts, "top_n": 2, "return_documents": True}
        answer = (await client.post(path, json=body)).json()
        assert [(one["index"], one["relevance_score"]) for one in answer["results"]] == [(1, 3), (0, 1)]
        assert answer["results"][0]["document"] == {"text": "the red dog"}
        assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    tei = {"query": "the red dog", "texts": texts, "return_text": True}
    scores = (await client.post("/rerank", json=tei)).json()
    assert scores[0] == {"index": 1, "score": 3, "text": "the red dog"}
    assert [one["index"] for one in scores] == [1, 0, 2]


@pytest.mark.parametrize(
    "more", [{}, {"documents": []}, {"documents": [1]}, {"documents": ["a"], "texts": ["a"]}, {"texts": "a"}]
)
async def test_a_wrong_request_for_ranks_is_refused(client: httpx.AsyncClient, more: dict[str, Any]) -> None:
    response = await client.post("/rerank", json={"query": "x", **more})
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_its_own_fields_cross(client: httpx.AsyncClient, link: ScriptedLink) -> None:
    body = {"prompt": "x", "top_k": 3, "min_p": 0.1, "grammar": 'root ::= "x"', "cache_prompt": False}
    assert (await client.post("/completion", json=body)).status_code == 200
    request = link.scripted.last(Generate)
    sampling = request.sampling
    assert (sampling.top_k, sampling.min_p, sampling.grammar) == (3, 0.1, 'root ::= "x"')
    assert request.reuse is False


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": [1, [2]]},
        {"prompt": ["x"] * 129},
        {"prompt": {"prompt_string": "x", "multimodal_data": ["AA=="]}},
        {"prompt": "x", "n_predict": -3},
        {"prompt": "x", "made_up": 1},
        {},
    ],
)
async def test_what_cannot_be_done_is_refused_in_its_form(client: httpx.AsyncClient, body: Any) -> None:
    response = await client.post("/completion", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_the_tokens_of_a_conversation_are_counted_without_an_answer(
    client: httpx.AsyncClient, link: ScriptedLink
) -> None:
    for path, body in (
        ("/chat/completions/input_tokens", {"messages": USER}),
        ("/v1/chat/completions/input_tokens", {"messages": USER}),
        ("/v1/responses/input_tokens", {"input": "Hi"}),
        ("/v1/messages/count_tokens", {"messages": USER}),
    ):
        assert (await client.post(path, json=body)).json() == {"input_tokens": len("user: Hi\n")}
    assert not any(isinstance(message, Generate) for message in link.scripted.received)


async def test_a_debugging_client_is_told_the_prompt(client: httpx.AsyncClient) -> None:
    for wants in (True, False):
        answer = (await client.post("/v1/chat/completions", json={"messages": USER, "verbose": wants})).json()
        assert answer.get("__verbose") == ({"prompt": "user: Hi\n"} if wants else None)
        assert answer["timings"]["predicted_n"] == 4
        assert answer["system_fingerprint"].startswith("b")


@pytest.mark.parametrize(
    ("more", "accepted"),
    [
        ([{"role": "assistant", "content": "Whi"}], True),
        ([{"role": "assistant", "content": "Whi"}, {"role": "assistant", "content": "le"}], False),
    ],
)
async def test_one_last_turn_of_the_assistant_is_gone_on_with(
    client: httpx.AsyncClient, more: list[dict[str, str]], accepted: bool
) -> None:
    response = await client.post("/v1/chat/completions", json={"messages": USER + more})
    assert response.status_code == (200 if accepted else 400)


async def test_going_on_can_be_asked_for_where_there_is_something_to_go_on_with(
    client: httpx.AsyncClient,
) -> None:
    begun = [*USER, {"role": "assistant", "content": "Whi"}]
    for messages, goes_on, status in ((begun, True, 200), (USER, True, 400), (USER, False, 200)):
        body = {"messages": messages, "continue_final_message": goes_on}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == status


@pytest.mark.parametrize(
    ("fields", "opens"),
    [
        ({}, True),
        ({"add_generation_prompt": True}, True),
        ({"add_generation_prompt": False}, False),
        ({"add_generation_prompt": True, "continue_final_message": True}, None),
    ],
)
async def test_the_assistants_turn_is_begun_unless_the_request_says_otherwise(
    client: httpx.AsyncClient, link: ScriptedLink, fields: dict[str, bool], opens: bool | None
) -> None:
    goes_on = "continue_final_message" in fields
    messages = [*USER, {"role": "assistant", "content": "Whi"}] if goes_on else USER
    response = await client.post("/apply-template", json={"messages": messages, **fields})
    assert response.status_code == (400 if opens is None else 200)
    if opens is not None:
        asked = link.scripted.last(Convert).source
        assert isinstance(asked, ChatPrompt)
        assert asked.opens == opens


async def test_texts_of_one_message_are_lines(client: httpx.AsyncClient, link: ScriptedLink) -> None:
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "it?"}]
    await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": parts}]})
    prompt = link.scripted.last(Generate).prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages[0].content == "What is\nit?"
