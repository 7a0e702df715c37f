"""The command line against a server that wants a key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from real_server import KEY, Server

pytestmark = pytest.mark.engine


def flexserve(
    server: Server, *arguments: str, key: str | None, home: Path
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLEXSERVE_")}
    environment |= {"XDG_CONFIG_HOME": str(home)} | ({"FLEXSERVE_API_KEY": key} if key else {})
    command = [sys.executable, "-m", "flexserve.cli", *arguments, "--socket", str(server.unix)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_it_sends_the_key_of_the_environment(server: Server, tmp_path: Path) -> None:
    done = flexserve(server, "ps", "--json", key=KEY, home=tmp_path)
    assert done.returncode == 0
    assert {model["name"] for model in json.loads(done.stdout)["models"]} == {"tiny", "caller"}


def test_it_says_that_a_key_is_wanted_and_shows_none(server: Server, tmp_path: Path) -> None:
    for key in (None, "sk-somebody-else"):
        done = flexserve(server, "ps", key=key, home=tmp_path)
        assert done.returncode == 1
        assert "API key" in done.stderr
        assert "sk-" not in done.stdout + done.stderr


def test_it_asks_a_model_over_the_socket(server: Server, tmp_path: Path) -> None:
    done = flexserve(server, "run", "tiny", "What is FlexServe?", key=KEY, home=tmp_path)
    assert done.returncode == 0
    assert "FlexServe" in done.stdout
