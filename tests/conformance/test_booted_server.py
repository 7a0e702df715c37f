"""A server on the emulated machine: the least of what `--platform trustzone` runs all of this folder for."""

from __future__ import annotations

from pathlib import Path

import httpx
import openai
import pytest
from real_server import Server

from flexserve.emulator import trusted_app
from flexserve.testing.machines import images_of
from flexserve.units import MIB

pytestmark = [pytest.mark.vm, pytest.mark.engine]


@pytest.mark.parametrize(
    ("platform", "label"),
    [("trustzone", "trustzone-emulated"), ("trustzone-inside", "trustzone-emulated-inside")],
)
def test_a_chat_is_the_same_in_a_stream_and_after_its_memory_was_taken(
    tmp_path: Path, platform: str, label: str
) -> None:
    if platform.endswith("inside") and trusted_app.built(trusted_app.default_cache()) is None:
        pytest.skip("the trusted application is not built of these sources: `make trusted-app`")
    images_of(512 * MIB, 2)
    server = Server(tmp_path, platform=platform)
    assert httpx.get(f"{server.url}/health", timeout=60).json()["protection"]["name"] == label
    with server.openai() as client:
        answers = [_asked(client), _streamed(client)]
        server.recall_all()
        answers.append(_asked(client))
    assert len(set(answers)) == 1
    assert answers[0]
    assert server.end() == 0


def _asked(client: openai.OpenAI) -> str | None:
    messages: list = [{"role": "user", "content": "What is Flex-Mem?"}]
    answer = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=24)
    return answer.choices[0].message.content


def _streamed(client: openai.OpenAI) -> str | None:
    messages: list = [{"role": "user", "content": "What is Flex-Mem?"}]
    parts = client.chat.completions.create(
        model="tiny", messages=messages, temperature=0, max_tokens=24, stream=True
    )
    return "".join(part.choices[0].delta.content or "" for part in parts)
