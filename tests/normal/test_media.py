"""Images, sounds and files are refused by each API, in one sentence that says what to do."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.anyio
PICTURE = "data:image/png;base64,iVBORw0KGgo="
OPENAI = {"type": "image_url", "image_url": {"url": PICTURE}}
RESPONSES = {"type": "input_image", "image_url": PICTURE}
ANTHROPIC = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
RESULT = {"type": "tool_result", "tool_use_id": "x", "content": [ANTHROPIC]}
SAYS = {"type": "text", "text": "What is this?"}


def turn(*parts: dict[str, Any], role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": list(parts)}]


@pytest.mark.parametrize(
    ("path", "body", "what"),
    [
        ("/v1/chat/completions", {"messages": turn(SAYS, OPENAI)}, "Images"),
        ("/v1/chat/completions", {"messages": turn({"type": "input_audio"})}, "Sounds"),
        ("/v1/chat/completions", {"messages": turn({"type": "file"})}, "Files"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "tool", "content": [OPENAI], "tool_call_id": "x"}]},
            "Images",
        ),
        ("/v1/responses", {"input": turn(RESPONSES)}, "Images"),
        ("/v1/responses", {"input": turn({"type": "input_file"})}, "Files"),
        (
            "/v1/responses",
            {"input": [{"type": "function_call_output", "call_id": "x", "output": [RESPONSES]}]},
            "Images",
        ),
        ("/v1/messages", {"messages": turn(ANTHROPIC, SAYS), "max_tokens": 5}, "Images"),
        ("/v1/messages", {"messages": turn(RESULT), "max_tokens": 5}, "Images"),
        ("/v1/messages", {"messages": turn({"type": "document"}), "max_tokens": 5}, "Files"),
        ("/v1/messages/count_tokens", {"messages": turn(ANTHROPIC)}, "Images"),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["iVBORw0KGgo="]}]}, "Images"),
        ("/api/generate", {"prompt": "x", "images": ["iVBORw0KGgo="]}, "Images"),
        ("/completion", {"prompt": {"prompt_string": "x", "multimodal_data": ["aGk="]}}, "Images and sounds"),
        ("/apply-template", {"messages": turn(OPENAI)}, "Images"),
    ],
)
async def test_what_is_no_text_is_refused_in_one_sentence(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], what: str
) -> None:
    response = await client.post(path, json={"model": "tiny", **body})
    assert response.status_code == 400
    assert f"{what} are not supported: this server's models read text. Leave them out" in response.text
    assert "iVBOR" not in response.text


async def test_parts_without_images_are_answered(client: httpx.AsyncClient) -> None:
    said = {"role": "user", "content": "x", "images": []}
    response = await client.post("/api/chat", json={"model": "tiny", "messages": [said], "stream": False})
    assert response.status_code == 200
    response = await client.post("/v1/chat/completions", json={"model": "tiny", "messages": turn(SAYS)})
    assert json.loads(response.text)["choices"]
