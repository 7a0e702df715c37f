"""The Vercel AI SDK asks through OpenAI's API, in Node."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from calls import ANSWER, PROJECT, Person, Place

pytestmark = [pytest.mark.engine, pytest.mark.libraries]
FETCHED = PROJECT / "build" / "clients"
PROGRAM = Path(__file__).parent / "vercel" / "calls.mjs"


@pytest.fixture(autouse=True, scope="module")
def program() -> Path:
    """The program, beside the packages that it imports."""
    if shutil.which("node") is None or not (FETCHED / "node_modules").exists():
        pytest.skip("There was no Node (apt install nodejs npm) when `make test-clients` fetched libraries.")
    shutil.copy(PROGRAM, FETCHED)
    return FETCHED / PROGRAM.name


def ask(place: Place, model: str, call: str, key: str | None = None) -> Any:
    command = ["node", str(FETCHED / PROGRAM.name), place.v1, key or place.key, model, call]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def test_an_answer_in_one_piece_and_in_a_stream_is_the_same(place: Place) -> None:
    whole = ask(place, "tiny", "text")
    assert (whole.pop("finishReason"), whole["tokens"]) == ("length", 24)
    assert ask(place, "tiny", "stream") == whole


def test_a_tool_is_called_and_its_result_answered(place: Place) -> None:
    assert ask(place, "agent", "tool") == {"text": ANSWER, "asked": ["Paris"]}


def test_an_answer_is_an_object(place: Place) -> None:
    assert Person.model_validate(ask(place, "caller", "object"))


def test_texts_become_vectors(place: Place) -> None:
    first, second = ask(place, "tiny", "vectors")
    assert sum(value * value for value in first) == pytest.approx(1, abs=1e-3)
    assert first != second


def test_errors_have_the_servers_status(place: Place) -> None:
    assert ask(place, "absent", "text")["status"] == 404
    assert ask(place, "tiny", "text", "sk-somebody-else")["status"] == 401
