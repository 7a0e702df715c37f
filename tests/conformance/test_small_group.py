"""A server in a memory cgroup that is too small for a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from real_server import Server

from flexserve.bench.group import memory_group
from flexserve.harness.shapes import Shape
from flexserve.harness.synth import write_synthetic
from flexserve.units import MIB

pytestmark = pytest.mark.engine

VOCABULARY = 262_144
HELLO: Any = [{"role": "user", "content": "hi"}]


@pytest.mark.root
def test_a_vocabulary_that_has_no_room_in_the_group_is_refused_and_the_server_lives(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    shape = Shape("large-vocabulary", "llama", 1, 64, 128, 2, 2, VOCABULARY, 128)
    write_synthetic(tmp_path / "large.gguf", shape, "q8_0")
    with memory_group(300 * MIB) as group:
        server = Server(tmp_path, group)
        server.store.add(tmp_path / "large.gguf", "large", lambda _done, _total: None)
        with server.openai() as client:
            for _ in range(2):
                with pytest.raises(openai.InternalServerError) as refused:
                    client.chat.completions.create(model="large", messages=HELLO, max_tokens=1)
                assert (refused.value.status_code, refused.value.code) == (503, "memory_refused")
        health = httpx.get(f"{server.url}/health", timeout=60).json()
        assert health["status"] == "ok"
        assert health["restarts"] == 0
        assert server.end() == 0
