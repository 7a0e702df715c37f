"""Servers on the emulated machine: the least of what `--platform trustzone-…` runs all of this folder for."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from real_server import KEY, TINY, Connected, Server

from flexserve.emulator import trusted_app
from flexserve.harness import synth
from flexserve.harness.shapes import SHAPES
from flexserve.testing.machines import images_of
from flexserve.units import MIB

pytestmark = [pytest.mark.vm, pytest.mark.engine]


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One whose models compute inside of the machine."""
    if trusted_app.built(trusted_app.default_cache()) is None:
        pytest.skip("the trusted application is not built of these sources: `make trusted-app`")
    images_of(512 * MIB, 2)
    server = Server(tmp_path_factory.mktemp("inside"), platform="trustzone-inside")
    yield server
    assert server.end() == 0


@pytest.fixture(scope="module")
def sealed(inside: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connected]:
    """`flexserve connect` to it."""
    connected = Connected(inside, tmp_path_factory.mktemp("connected"))
    yield connected
    assert connected.end() == 0


def label_of(server: Server) -> str:
    return str(httpx.get(f"{server.url}/health", timeout=60).json()["protection"]["name"])


def test_a_chat_is_the_same_in_a_stream_and_after_its_memory_was_taken(tmp_path: Path) -> None:
    images_of(512 * MIB, 2)
    server = Server(tmp_path, platform="trustzone-host")
    assert label_of(server) == "trustzone-emulated"
    with server.openai() as client:
        answers = [_asked(client), _streamed(client)]
        server.recall_all()
        answers.append(_asked(client))
    assert len(set(answers)) == 1
    assert answers[0]
    assert server.end() == 0


def test_inside_a_sealed_chat_is_the_plain_one_before_during_and_after_a_recall(
    inside: Server, sealed: Connected
) -> None:
    assert label_of(inside) == "trustzone-emulated-inside"
    with inside.openai() as plain, sealed.openai() as client:
        answers = [_asked(plain), _streamed(plain), _asked(client), _streamed(client)]
        inside.recall_all()
        answers += [_asked(client), _streamed(client, during=inside.recall_all)]
        inside.recall_all()
        answers.append(_asked(plain))
    assert len(set(answers)) == 1
    assert answers[0]


def test_inside_tools_are_offered_and_not_forced_on_a_sealed_answer(sealed: Connected) -> None:
    tool: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    asked: dict[str, Any] = {
        "model": "caller",
        "messages": [{"role": "user", "content": "Look."}],
        "tools": [tool],
        "temperature": 0,
        "max_tokens": 4,
    }
    with sealed.openai() as client:
        answer = client.chat.completions.create(**asked)
        assert answer.usage.completion_tokens == 4
        assert answer.usage.prompt_tokens > 50, "the tool is in the prompt"
        with pytest.raises(openai.BadRequestError, match="have a tool called"):
            client.chat.completions.create(**asked, tool_choice="required")


def test_inside_a_receipt_says_which_weights_answered(sealed: Connected) -> None:
    question = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    answer = httpx.post(f"{sealed.url}/v1/chat/completions", json=question, timeout=60)
    file = sealed.receipts / f"{answer.headers['x-request-id']}.receipt"
    said = json.loads(run("receipt", "verify", str(file), "--policy", str(sealed.policy), "--json").stdout)
    assert (said["verified"], said["model"], said["answer_tokens"]) == (True, "tiny", 4)
    assert said["gguf"] == hashlib.sha256(TINY.read_bytes()).hexdigest()


def test_inside_is_what_was_measured_and_a_model_that_was_added_meanwhile_is_attested(
    inside: Server, tmp_path: Path
) -> None:
    policy, added = tmp_path / "policy.toml", tmp_path / "added.gguf"
    measure = ("measure", "--json", "--platform", "trustzone")
    measured = run(*measure, "--policy", str(policy))
    assert measured.returncode == 0, measured.stderr
    policy.write_text(policy.read_text().replace('emulated = "refuse"', 'emulated = "allow"'))
    attest = ("attest", "--policy", str(policy), "--socket", str(inside.unix))
    synth.write_synthetic(added, SHAPES["small-llama"], "q4_0", seed=5)
    inside.store.add(added, "added", lambda _done, _total: None)
    inside.store.add(TINY, "again", lambda _done, _total: None)  # which it has under another name
    try:
        good = run(*attest, "--json")
    finally:
        inside.store.remove("added")
        inside.store.remove("again")
    assert good.returncode == 0, good.stderr
    shown = json.loads(good.stdout)
    assert [layer["name"] for layer in shown["layers"]] == ["el3", "el2", "secure-os", "application"]
    assert shown["unchecked"] == ["root", "models"]
    assert hashlib.sha256(added.read_bytes()).hexdigest() in {each["sha256"] for each in shown["models"]}
    digest = json.loads(measured.stdout)["measurements"]["application"]
    policy.write_text(policy.read_text().replace(digest, "0" * len(digest)))
    assert "measurement application: expected 000" in run(*attest).stderr


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FLEXSERVE_API_KEY": KEY}
    command = [sys.executable, "-m", "flexserve.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def _asked(client: openai.OpenAI) -> str | None:
    messages: list = [{"role": "user", "content": "What is Flex-Mem?"}]
    answer = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=24)
    return answer.choices[0].message.content


def _streamed(client: openai.OpenAI, during: Callable[[], None] = lambda: None) -> str | None:
    messages: list = [{"role": "user", "content": "What is Flex-Mem?"}]
    parts = client.chat.completions.create(
        model="tiny", messages=messages, temperature=0, max_tokens=24, stream=True
    )
    texts: list[str] = []
    for part in parts:
        if part.choices[0].delta.content and not texts:
            during()
        texts.append(part.choices[0].delta.content or "")
    return "".join(texts)
