"""The command line in this process, in a home of its own."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.testing
from servers import MODELS, Cli, ScriptedServer, scripted_server, silent_port
from typer.testing import CliRunner, Result

from flexserve.cli.app import app
from flexserve.harness.shapes import Shape
from flexserve.harness.synth import write_synthetic
from flexserve.normal import journal

# Each invocation would make all commands anew, of the same functions: it takes ten times as long as the rest.
typer.testing._get_command = functools.cache(typer.testing._get_command)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No test sees the configuration, the models or the server of whoever runs it."""
    for variable in ("CONFIG", "DATA", "CACHE"):
        monkeypatch.setenv(f"XDG_{variable}_HOME", str(tmp_path / variable.lower()))
    for variable in ("HOST", "PORT", "UNIX_SOCKET", "MODELS", "DEVICE_KEY", "MEMORY", "KEEP_ALIVE"):
        monkeypatch.delenv(f"FLEXSERVE_{variable}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "r").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "r"))
    journal.configure(level="critical")  # a server in this process would log among the command's output
    with silent_port() as port:
        monkeypatch.setenv("FLEXSERVE_PORT", str(port))  # unless a test says otherwise
        yield tmp_path


@pytest.fixture
def cli() -> Cli:
    def invoke(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, list(arguments), input=stdin, prog_name="flexserve")

    return invoke


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "Small Model.gguf"
    shape = Shape("small", "llama", 1, 64, 128, 2, 2, 512, 128)
    write_synthetic(path, shape, "q8_0")
    return path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    """A server at the configured address."""
    with scripted_server(monkeypatch, MODELS) as server:
        yield server
