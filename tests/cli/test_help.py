"""Help, versions, usage errors: what a person meets first."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from servers import Cli

from flexserve import __version__

COMMANDS = [
    "add", "list", "show", "verify", "rm", "serve", "ps", "recall",
    "free", "limit", "pin", "unpin", "log", "set", "attest", "measure",
    "run", "chat", "boot", "synth", "bench", "config", "version",
]  # fmt: skip

HEAVY = [
    "pydantic",
    "httpx",
    "fastapi",
    "uvicorn",
    "numpy",
    "gguf",
    "llama_cpp",
    "cryptography",
    "ctypes.util",
]


def test_help_lists_every_command(cli: Cli) -> None:
    result = cli("--help")
    assert result.exit_code == 0
    listed = result.stdout.partition("Commands:")[2].splitlines()
    assert set(COMMANDS) <= {line.split()[0] for line in listed if line.strip()}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_has_an_example_of_it(cli: Cli, command: str) -> None:
    result = cli(command, "--help")
    assert result.exit_code == 0
    example = result.stdout.partition("Example: ")[2]
    assert f"flexserve {command}" in " ".join(example.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_flag_that_does_not_exist_is_misuse(cli: Cli, command: str) -> None:
    result = cli(command, "--no-such-flag")
    assert result.exit_code == 2
    assert "--no-such-flag" in result.stderr
    assert result.stdout == ""


def test_a_command_that_does_not_exist_is_misuse(cli: Cli) -> None:
    assert cli("frobnicate").exit_code == 2


def test_both_ways_to_ask_for_the_version_name_it(cli: Cli) -> None:
    assert cli("--version").stdout.split() == ["flexserve", __version__]
    assert cli("version").stdout.startswith(f"flexserve {__version__} ")
    assert set(json.loads(cli("version", "--json").stdout)) == {"flexserve", "llama_cpp_python", "python"}


def test_help_loads_nothing_heavy() -> None:
    code = f"import sys, flexserve.cli.app; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
