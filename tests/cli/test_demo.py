"""The demo's story, with its commands played by a script; tests/e2e runs the real one."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flexserve.bench import demo
from flexserve.emulator import images
from flexserve.errors import NormalWorldError, PeerError


class Played(demo.Demo):
    """A demo whose commands are answered from `answers`; `commands` are those it ran."""

    def __init__(
        self, folder: Path, console: Console, answers: list[str], machine: str | None = None
    ) -> None:
        super().__init__(folder, console, machine)
        self.commands: list[str] = []
        self._answers = iter(answers)

    def _command(self, *arguments: str) -> str:
        self.commands.append(arguments[0])
        if arguments[0] != "run":
            return f"output of {arguments[0]}\n"
        return json.dumps(
            {"answer": next(self._answers), "timings_ms": {"ttft": 12.3, "restored_bytes": 4096}}
        )

    def _answer_through_connect(self, policy: Path, receipts: Path) -> tuple[str, Path]:
        self.commands.append("connect")
        return "A sealed answer.", receipts / "one.receipt"

    @contextlib.contextmanager
    def _server(self) -> Iterator[None]:
        self.commands.append("serve")
        yield
        self.commands.append("stop")


def play(folder: Path, *answers: str, machine: str | None = None) -> tuple[int, str, Played]:
    output = io.StringIO()
    played = Played(folder, Console(file=output, width=200), list(answers), machine)
    status = played.run(Path("model.gguf"))
    return status, output.getvalue(), played


def test_equal_answers_are_called_identical(tmp_path: Path) -> None:
    status, output, played = play(tmp_path, "An [answer].", "An [answer].")
    assert status == 0
    assert "IDENTICAL" in output
    assert output.count("An [answer].") == 2
    assert "A sealed answer." in output
    assert played.commands == [
        "add",
        "serve",
        "run",
        "ps",
        "recall",
        "run",
        "measure",
        "connect",
        "receipt",
        "stop",
    ]


def test_different_answers_fail_the_demo(tmp_path: Path) -> None:
    status, output, _ = play(tmp_path, "An answer.", "An answer!")
    assert status == 1
    assert "DIFFERENT" in output
    assert "IDENTICAL" not in output


def test_without_secret_memory_it_says_so_and_is_labelled_unprotected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise NormalWorldError("This kernel offers no secret memory.", hint="Boot another [one].")

    monkeypatch.setattr(demo, "probe_secret_memory", refuse)
    status, output, played = play(tmp_path, "same", "same")
    assert status == 0
    assert "This kernel offers no secret memory. Boot another [one]." in output
    assert "UNPROTECTED" in output
    assert played.environment["FLEXSERVE_MEMORY"] == "plain"


@pytest.mark.parametrize("where", ["host", "inside"])
def test_on_the_emulated_machine_its_parts_are_built_before_anything_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    built: list[dict[str, Any]] = []

    def build(*, progress: Callable[[str], None], **what: Any) -> None:
        progress("building the monitor")
        built.append(what)

    monkeypatch.setattr(images, "images_for", build)
    status, output, played = play(tmp_path, "same", "same", machine=where)
    assert status == 0
    assert output.index("building the monitor") < output.index("Seal the model")
    assert [what["inside"] for what in built] == [where == "inside"]
    assert played.environment["FLEXSERVE_PLATFORM"] == "trustzone"
    assert played.environment["FLEXSERVE_SECURE_WORLD"] == where
    assert "FLEXSERVE_MEMORY" not in played.environment


@pytest.mark.parametrize(
    ("words", "machine"),
    [
        ([], None),
        (["--platform", "trustzone"], "inside"),
        (["--platform", "trustzone", "--secure-world", "host"], "host"),
    ],
)
def test_models_compute_inside_of_the_machine_unless_somebody_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, words: list[str], machine: str | None
) -> None:
    asked: list[str | None] = []

    class Noted(demo.Demo):
        def __init__(self, folder: Path, console: Console, machine: str | None = None) -> None:
            super().__init__(folder, console, machine)
            asked.append(machine)

        def run(self, model: Path) -> int:
            return 0

    monkeypatch.setattr(demo, "Demo", Noted)
    assert demo.main(words) == 0
    assert asked == [machine]


def test_where_models_compute_on_the_machine_is_misuse_elsewhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        demo.main(["--secure-world", "inside"])
    assert "--secure-world is of --platform trustzone" in capsys.readouterr().err


def test_it_sees_nothing_of_the_configuration_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEXSERVE_MODELS", "/somewhere/else")
    environment = demo.Demo(tmp_path, Console(file=io.StringIO())).environment
    assert not any(name.startswith("FLEXSERVE_") for name in environment)
    assert environment["XDG_CONFIG_HOME"].startswith(str(tmp_path))


def test_a_command_that_fails_ends_it_with_that_commands_words(tmp_path: Path) -> None:
    failing = demo.Demo(tmp_path, Console(file=io.StringIO()))
    with pytest.raises(PeerError, match="There is no model named 'nothing'"):
        failing._command("show", "nothing")


def test_a_model_that_is_missing_is_an_error_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main([str(tmp_path / "missing.gguf")]) == 1
    output = capsys.readouterr().out
    assert "missing.gguf cannot be read" in output
    assert "Traceback" not in output
