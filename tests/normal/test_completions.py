"""Completions over a scripted world: shapes, statuses, and what a bad request gets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from flexserve.normal.api import answering
from flexserve.normal.api.forms import ChatForm, CompletionForm
from flexserve.normal.supervisor import WorldState
from flexserve.normal.world import World
from flexserve.protocol.answers import Choice, Delta, TokenLogprob
from flexserve.protocol.prompts import InfillPrompt, TextPrompt
from flexserve.protocol.requests import Cancel, Generate
from flexserve.testing.scripted_link import ScriptedLink

pytestmark = pytest.mark.anyio
Until = Callable[[Callable[[], bool]], Awaitable[None]]
USER = [{"role": "user", "content": "a very secret prompt"}]


def chat(model: str = "tiny", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": USER, **more}


async def post(client: httpx.AsyncClient, path: str, body: Any) -> httpx.Response:
    return await client.post(path, json=body)


def events(text: str) -> list[Any]:
    """Return the data of each event of a stream; the final [DONE] as that word."""
    data = [block.removeprefix("data: ") for block in text.split("\n\n") if block.startswith("data: ")]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


async def test_a_chat_answer_in_one_piece(client: httpx.AsyncClient) -> None:
    body = (await post(client, "/v1/chat/completions", chat())).json()
    assert body["object"] == "chat.completion"
    assert body["model"] == "tiny"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello, world!", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    usage = body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (7, 4, 11)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 3}
    assert usage["timings"]["queue_ms"] == 1.5
    assert set(usage["timings"]) == {
        *(f"{name}_ms" for name in ("queue", "restore", "decrypt", "prefill", "decode", "ttft")),
        "restored_bytes",
        "npu_products",
        "guessed",
        "guessed_right",
    }


async def test_a_chat_stream_is_role_then_text_then_reason_then_done(client: httpx.AsyncClient) -> None:
    response = await post(client, "/v1/chat/completions", chat(stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": None}
    assert "".join(choice["delta"]["content"] for choice in choices[1:-1]) == "Hello, world!"
    assert choices[-1] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_usage_in_a_stream_comes_last_and_only_when_asked_for(client: httpx.AsyncClient) -> None:
    asked = chat(stream=True, stream_options={"include_usage": True})
    *_, usage, done = events((await post(client, "/v1/chat/completions", asked)).text)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 11
    plain = events((await post(client, "/v1/chat/completions", chat(stream=True))).text)
    assert not any("usage" in chunk for chunk in plain[:-1])


async def test_text_of_any_script_survives_the_stream(client: httpx.AsyncClient) -> None:
    *chunks, _ = events(
        (await post(client, "/v1/completions", {"model": "odd", "prompt": "", "stream": True})).text
    )
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == 'ключ🔑\n\n"}'


async def test_a_completion_and_its_logprobs(client: httpx.AsyncClient) -> None:
    body = (await post(client, "/v1/completions", {"model": "tiny", "prompt": ["x"], "logprobs": 2})).json()
    assert body["object"] == "text_completion"
    choice = body["choices"][0]
    assert choice["text"] == "Hello, world!"
    assert choice["logprobs"] == {
        "tokens": ["Hello", ",", " world", "!"],
        "token_logprobs": [-0.5] * 4,
        "top_logprobs": [{f"{t}0": -1.0, f"{t}1": -2.0} for t in ("Hello", ",", " world", "!")],
        "text_offset": [0, 5, 6, 12],
    }


async def test_chat_logprobs_have_bytes_and_alternatives(client: httpx.AsyncClient) -> None:
    body = (await post(client, "/v1/chat/completions", chat("odd", logprobs=True, top_logprobs=1))).json()
    first = body["choices"][0]["logprobs"]["content"][0]
    assert first["bytes"] == list("ключ".encode())
    assert first["top_logprobs"][0]["logprob"] == -1.0
    bare = (await post(client, "/v1/chat/completions", chat(logprobs=True))).json()
    assert bare["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


async def test_max_tokens_ends_with_length_under_both_names(client: httpx.AsyncClient) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        body = (await post(client, "/v1/chat/completions", chat() | {name: 2})).json()
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["usage"]["completion_tokens"] == 2


async def test_parameters_reach_the_secure_world_as_they_are(
    client: httpx.AsyncClient, link: ScriptedLink
) -> None:
    messages = [
        {
            "role": "developer",
            "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}],
        },
        *USER,
    ]
    asked = chat(temperature=0, top_p=0.5, seed=42, stop="END", max_tokens=9) | {"messages": messages}
    await post(client, "/v1/chat/completions", asked)
    generate = link.scripted.last(Generate)
    assert [(m.role, m.content) for m in generate.prompt.messages] == [  # type: ignore[union-attr]
        ("system", "be \nbrief"),
        ("user", "a very secret prompt"),
    ]
    sampling = generate.sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.max_tokens) == (0, 0.5, 42, 9)
    assert sampling.stop == ["END"]
    assert sampling.logprobs is None


async def test_completions_default_to_sixteen_tokens(client: httpx.AsyncClient, link: ScriptedLink) -> None:
    await post(client, "/v1/completions", {"model": "tiny", "prompt": "x"})
    assert link.scripted.last(Generate).sampling.max_tokens == 16


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "schema": {}, "json_schema": {}}}, "response_format"),
        ({"grammar": "x" * ((1 << 16) + 1)}, "grammar"),
        ({"grammar": "root ::= x", "json_schema": {}}, "grammar"),
        ({"json_schema": {"type": "string"}, "response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"keep_alive": -2}, "keep_alive"),
        ({"keep_alive": True}, "keep_alive"),
        ({"flexserve": {"priority": 11}}, "flexserve.priority"),
        ({"flexserve": {"next_model": ""}}, "flexserve.next_model"),
        ({"logit_bias": {"1": "2"}}, "logit_bias"),
        ({"logit_bias": {"1": True}}, "logit_bias"),
        ({"logit_bias": [[1]]}, "logit_bias"),
        ({"logit_bias": [[1.5, 2]]}, "logit_bias"),
        ({"logit_bias": [[1, "x"]]}, "logit_bias"),
        ({"presence_penalty": 101}, "presence_penalty"),
        ({"temperature": 101}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_"),
        ({"max_tokens": 1, "n_predict": 2}, "n_predict"),
        ({"max_tokens": 1, "min_tokens": 2}, "min_tokens"),
        ({"typical_p": 0.5, "typ_p": 0.6}, "typ_p"),
        ({"repeat_penalty": 1.5, "repetition_penalty": 1.6}, "repetition_penalty"),
        ({"samplers": ["top_k", "magic"]}, "samplers"),
        ({"samplers": "kz"}, "samplers"),
        ({"mirostat": 3}, "mirostat"),
        ({"repeat_penalty": 0}, "repeat_penalty"),
        ({"seed": -2}, "seed"),
        ({"max_tokens": True}, "max_tokens"),
        ({"seed": 1 << 63}, "seed"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": []}, {"role": "user"}]}, "messages[1]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x" * ((1 << 20) + 1)}]}, "messages[0].content"),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
    ],
)
async def test_a_wrong_parameter_is_named_in_a_400(
    client: httpx.AsyncClient, more: dict[str, Any], param: str
) -> None:
    response = await post(client, "/v1/chat/completions", chat() | more)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"].startswith(param)
    assert "secret prompt" not in response.text


@pytest.mark.parametrize(
    "more",
    [
        {"suffix": "x", "prompt": [1, 2]},
        {"best_of": 1, "n": 2},
        {"best_of": 2, "stream": True},
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": [1, [2]]},
        {"prompt": [-1]},
        {"prompt": [True]},
        {"prompt": [["x", ["y"]]]},
    ],
)
async def test_completions_refuse_what_they_cannot_do(
    client: httpx.AsyncClient, more: dict[str, Any]
) -> None:
    response = await post(client, "/v1/completions", {"model": "tiny", "prompt": "x"} | more)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == next(iter(more))


async def test_a_suffix_makes_a_gap_of_each_prompt(client: httpx.AsyncClient, link: ScriptedLink) -> None:
    body = {"model": "tiny", "prompt": ["def f(", "def g("], "suffix": "return x"}
    answer = (await post(client, "/v1/completions", body)).json()
    assert len(answer["choices"]) == 2
    crossed = [message.prompt for message in link.scripted.every(Generate)]
    assert crossed == [InfillPrompt("def f(", "return x"), InfillPrompt("def g(", "return x")]
    await post(client, "/v1/completions", body | {"prompt": "x", "suffix": ""})
    assert link.scripted.last(Generate).prompt == TextPrompt("x")


async def test_harmless_values_of_unsupported_parameters_pass(client: httpx.AsyncClient) -> None:
    more = {"n": 1, "tools": [], "response_format": {"type": "text"}, "user": "u", "presence_penalty": 0.0}
    assert (await post(client, "/v1/chat/completions", chat() | more)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_an_unknown_model_is_a_404_also_in_a_stream(client: httpx.AsyncClient, stream: bool) -> None:
    response = await post(client, "/v1/chat/completions", chat("nobody", stream=stream))
    assert response.status_code == 404
    assert response.json()["error"] | {"message": "", "hint": ""} == {
        "message": "",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
        "blame": "caller",
        "hint": "",
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_queue_is_a_429_with_retry_after(
    client: httpx.AsyncClient, world: World, link: ScriptedLink, until: Until, stream: bool
) -> None:
    waiting = [asyncio.create_task(post(client, "/v1/chat/completions", chat("stuck"))) for _ in range(4)]
    await until(lambda: len(link.scripted.every(Generate)) == 4)
    response = await post(client, "/v1/chat/completions", chat(stream=stream))
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await until(lambda: len(link.scripted.every(Cancel)) == 4)
    assert (await post(client, "/v1/chat/completions", chat())).status_code == 200


async def test_an_error_in_mid_stream_is_an_event_and_no_done_follows(client: httpx.AsyncClient) -> None:
    response = await post(client, "/v1/chat/completions", chat("forged", stream=True))
    assert response.status_code == 200
    *_, last = events(response.text)
    assert last["error"]["type"] == "stored_data_error"
    assert "Seal it again." in last["error"]["message"]
    whole = await post(client, "/v1/chat/completions", chat("forged"))
    assert whole.status_code == 500


@pytest.mark.parametrize("model", ["garbage", "oversized", "unasked", "repeated"])
async def test_a_hostile_secure_world_costs_its_requests_and_not_the_server(
    client: httpx.AsyncClient, world: World, until: Until, model: str
) -> None:
    response = await post(client, "/v1/chat/completions", chat(model))
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "unavailable_error"
    await until(lambda: world.restarts == 1 and world.state is WorldState.READY)
    assert (await post(client, "/v1/chat/completions", chat())).status_code == 200


async def test_pings_keep_a_long_prefill_alive(
    client: httpx.AsyncClient, link: ScriptedLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "PING_SECONDS", 0.003)
    response = await post(client, "/v1/chat/completions", chat("slow", stream=True, max_tokens=3))
    assert ": still working\n\n" in response.text
    assert events(response.text)[-1] == "[DONE]"


SPLIT = [TokenLogprob(bytes([byte]), -0.5) for byte in "😸".encode()] + [TokenLogprob(b"!", -0.5)]


def test_bytes_of_a_token_are_its_own_though_it_splits_a_character() -> None:
    form = ChatForm("m", with_logprobs=True)
    content = form.chunks(Delta(1, "😸!", 5, [Choice(one, SPLIT) for one in SPLIT]))[0]["choices"][0][
        "logprobs"
    ]
    found = [token["bytes"] for token in content["content"]]
    assert found == [[240], [159], [152], [184], [33]]
    assert [top["bytes"] for top in content["content"][0]["top_logprobs"]] == found


def test_offsets_of_tokens_count_characters_of_the_text() -> None:
    form = CompletionForm("m", with_logprobs=True)
    found = form.chunks(Delta(1, "😸!", 5, [Choice(one, []) for one in SPLIT]))[0]["choices"][0]["logprobs"]
    assert found["text_offset"] == [0, 0, 0, 0, 1]


def test_impossible_probabilities_are_still_json() -> None:
    form = ChatForm("m", with_logprobs=True)
    (chunk,) = form.chunks(Delta(1, "x", 1, [Choice(TokenLogprob(b"x", float("-inf")), [])]))
    assert (
        json.loads(json.dumps(chunk, allow_nan=False))["choices"][0]["logprobs"]["content"][0]["logprob"]
        == -9999
    )
