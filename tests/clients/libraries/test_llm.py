"""The command line `llm`, with the server's models beside its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from calls import ANSWER, QUESTION, Person, Place

pytest.importorskip("llm")
pytestmark = [pytest.mark.engine, pytest.mark.libraries]

MODEL = """\
- model_id: {name}
  model_name: {name}
  api_base: {base}
  api_key_name: flexserve
  supports_schema: true
  supports_tools: true
"""
TOOL = """\
def weather(city: str) -> str:
    "Say how the weather is in a city."
    return "sunny in " + city
"""


@pytest.fixture
def llm(place: Place, tmp_path: Path) -> Llm:
    models = "".join(MODEL.format(name=name, base=place.v1) for name in ("tiny", "caller", "agent", "absent"))
    (tmp_path / "extra-openai-models.yaml").write_text(models)
    return Llm(tmp_path, place.key)


class Llm:
    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._key = folder, key

    def __call__(self, *arguments: str, key: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "llm", *arguments, "--key", key or self._key]
        environment = {**os.environ, "LLM_USER_PATH": str(self._folder)}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


GREEDY = ("-o", "temperature", "0", "-o", "max_tokens", "24")


def test_an_answer_in_one_piece_and_in_a_stream_is_the_same(llm: Llm) -> None:
    whole, streamed = (llm("-m", "tiny", QUESTION, *GREEDY, *how).stdout for how in (("--no-stream",), ()))
    assert whole.strip()
    assert streamed.strip() == whole.strip()


def test_a_tool_is_called_and_its_result_answered(llm: Llm) -> None:
    result = llm("-m", "agent", QUESTION, "--functions", TOOL, "--td", "-o", "max_tokens", "60")
    assert "sunny in Paris" in result.stderr
    assert result.stdout.strip() == ANSWER


def test_an_answer_follows_a_schema(llm: Llm) -> None:
    schema = json.dumps(Person.model_json_schema())
    result = llm("-m", "caller", QUESTION, "--schema", schema, "--no-stream", "-o", "max_tokens", "200")
    assert Person.model_validate_json(result.stdout)


def test_errors_are_told(llm: Llm) -> None:
    absent, stranger = llm("-m", "absent", QUESTION), llm("-m", "tiny", QUESTION, key="sk-somebody-else")
    assert absent.returncode
    assert "There is no" in absent.stderr
    assert stranger.returncode
    assert "API keys" in stranger.stderr
