"""What `flexserve connect` shows and keeps: whom it verified, and receipts of answers."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import httpx
import pytest
from real_server import KEY, TINY, Connected, Server

from flexserve.harness.served import FLEXSERVE

pytestmark = pytest.mark.engine
QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": "What is FlexServe?"}], "max_tokens": 8}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FLEXSERVE_API_KEY": KEY}
    return subprocess.run(
        [*FLEXSERVE, *arguments], capture_output=True, text=True, check=False, env=environment
    )


def asked(connected: Connected) -> tuple[str, str]:
    """Ask a question; return the answer and the name of the request."""
    answer = httpx.post(f"{connected.url}/v1/chat/completions", json=QUESTION, timeout=60)
    return answer.json()["choices"][0]["message"]["content"], answer.headers["x-request-id"]


def test_a_receipt_proves_which_weights_answered_what(connected: Connected, tmp_path: Path) -> None:
    text, name = asked(connected)
    (kept,) = httpx.get(f"{connected.url}/receipts/{name}").json()["data"]
    file = connected.receipts / f"{name}.receipt"
    assert json.loads(file.read_text()) == kept
    (tmp_path / "answer").write_text(text)
    verify = ("receipt", "verify", str(file), "--policy", str(connected.policy), "--json")
    said = json.loads(run(*verify, "--answer", str(tmp_path / "answer")).stdout)
    digest = subprocess.run(["sha256sum", TINY], capture_output=True, text=True, check=True).stdout.split()[0]
    assert (said["verified"], said["model"], said["gguf"], said["answer_tokens"]) == (True, "tiny", digest, 8)
    (tmp_path / "answer").write_text(f"{text} Not.")
    assert "another_answer" in run(*verify, "--answer", str(tmp_path / "answer")).stderr


def test_a_changed_receipt_is_refused(connected: Connected, tmp_path: Path) -> None:
    _, name = asked(connected)
    kept = json.loads((connected.receipts / f"{name}.receipt").read_text())
    forged = tmp_path / "forged.receipt"
    forged.write_text(json.dumps({**kept, "receipt": kept["receipt"][:-8] + "AAAAAAA="}))
    done = run("receipt", "verify", str(forged), "--policy", str(connected.policy))
    assert done.returncode == 1
    assert "receipt: expected one signed by the secure world" in done.stderr


def test_what_was_verified_is_shown(connected: Connected) -> None:
    shown = httpx.get(f"{connected.url}/verification").json()
    assert shown["verified"] is True
    assert {"root", "measurements", "models", "sealing_key", "unchecked"} <= shown.keys()
    assert httpx.get(f"{connected.url}/health").json()["status"] == "ok"
    assert httpx.get(f"{connected.url}/receipts/req-none").status_code == 400


def test_a_secure_world_that_the_policy_does_not_allow_gets_nothing(server: Server, tmp_path: Path) -> None:
    policy = tmp_path / "strict.toml"
    policy.write_text("")
    done = run("connect", server.url, "--port", "0", "--policy", str(policy))
    assert done.returncode == 1
    assert "debug status: expected disabled, found enabled" in done.stderr
    assert not done.stdout


def test_a_stream_has_a_receipt_as_well(connected: Connected) -> None:
    with httpx.stream(
        "POST", f"{connected.url}/v1/chat/completions", json={**QUESTION, "stream": True}, timeout=60
    ) as answer:
        assert b"[DONE]" in answer.read()
    name = answer.headers["x-request-id"]
    assert httpx.get(f"{connected.url}/receipts/{name}").json()["data"]
