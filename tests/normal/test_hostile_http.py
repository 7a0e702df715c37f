"""Whatever a client sends as a body, it is a 4xx, or an answer; never a 5xx, and the server stays up."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_routes import said

from flexserve.normal.api.app import create_app
from flexserve.normal.world import supervised
from flexserve.testing.script import Script
from flexserve.testing.scripted_link import AdjustableMemory, ScriptedLink

PATHS = [
    *(
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
    ),
    *("/api/chat", "/api/generate", "/api/embed", "/api/show", "/completion", "/infill", "/tokenize"),
    *("/detokenize", "/apply-template", "/embedding", "/v1/embeddings", "/recall"),
]
STRICT = ("/v1/chat/completions", "/v1/completions", "/recall")  # which have all the fields of the poisons
TEXT = st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        *("model", "messages", "prompt", "max_tokens", "temperature", "top_p", "seed", "stop", "stream"),
        *(
            "logprobs",
            "top_logprobs",
            "stream_options",
            "n",
            "tools",
            "bytes",
            "deadline_ms",
            "suffix",
            "echo",
        ),
        *("input", "instructions", "text", "tool_choice", "include", "metadata", "system", "stop_sequences"),
        *("thinking", "options", "format", "think", "raw", "keep_alive", "flexserve", "user", "n_predict"),
        *("n_probs", "input_prefix", "input_extra", "content", "tokens", "add_special", "with_pieces"),
    ]
)
NEARLY = st.fixed_dictionaries(
    {
        "model": st.just("tiny"),
        "prompt": st.just("x"),
        "messages": st.just([{"role": "user", "content": "x"}]),
        "input": st.just("x"),
        "content": st.just("x"),
        "tokens": st.just([1]),
        "max_tokens": st.just(5),
    }
)


def send(path: str, content: bytes) -> httpx.Response:
    async def one() -> httpx.Response:
        async with supervised(ScriptedLink(Script()).launch, AdjustableMemory(), drain=0) as world:
            transport = httpx.ASGITransport(create_app(world))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                headers = {"Content-Type": "application/json"}
                response = await client.post(path, content=content, headers=headers)
                assert (await client.get("/health")).status_code == 200
                return response

    return asyncio.run(one())


def check(path: str, content: bytes) -> None:
    response = send(path, content)
    assert response.status_code == 200 or 400 <= response.status_code < 500, response.text
    if response.status_code != 200:
        assert said(path, response.json())


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PATHS), st.binary(max_size=60))
def test_any_bytes(path: str, content: bytes) -> None:
    check(path, content)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PATHS), JSON)
def test_any_json(path: str, body: Any) -> None:
    check(path, json.dumps(body).encode())


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PATHS), NEARLY, st.dictionaries(FIELDS, JSON, max_size=3))
def test_legal_bodies_with_any_values_in_known_fields(path: str, body: Any, changes: dict[str, Any]) -> None:
    check(path, json.dumps(body | changes).encode())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "content",
    [
        b"[" * 200_000,
        b'{"model":' * 50_000,
        b'{"model": "\\ud800", "prompt": "\\ud800", "bytes": "\\ud800"}',
        b'{"max_tokens": ' + b"9" * 5000 + b"}",
        b'{"model": "tiny", "prompt": "x", "temperature": NaN, "bytes": NaN}',
        b'{"model": "tiny", "prompt": "x", "temperature": 1e999, "bytes": 1e999}',
        b"\xff\xfe[\x00]\x00",
        b'{"model": "\x00"}',
        b"",
        b"null",
    ],
    ids=[
        "deep list",
        "deep object",
        "surrogate",
        "huge int",
        "nan",
        "inf",
        "utf-16",
        "control",
        "empty",
        "null",
    ],
)
def test_known_poisons(path: str, content: bytes) -> None:
    if path == "/recall" and content in (b"", b"null"):
        assert send(path, content).status_code == 200  # recall everything
    elif path in STRICT:
        response = send(path, content)
        assert response.status_code == 400, response.text
        assert said(path, response.json())
    else:
        check(path, content)
