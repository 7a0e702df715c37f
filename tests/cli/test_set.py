"""flexserve set: how one model is served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from servers import Cli, ScriptedServer

from flexserve import settings
from flexserve.cli import trial
from flexserve.normal.model_options import ModelChoices
from flexserve.normal.pins import Pins
from flexserve.protocol.model_options import ModelOptions

NO_DRAFT = ("draft", "default")


def test_options_are_set_on_a_server_shown_and_set_back(cli: Cli, server: ScriptedServer) -> None:
    assert cli("set", "tiny", "context", "8k").stdout.split() == [
        "context",
        "8192",
        "kv",
        "default",
        "shift",
        "default",
        *NO_DRAFT,
    ]
    assert cli("set", "tiny", "kv", "q8_0").exit_code == 0
    shown = json.loads(cli("set", "tiny", "--json").stdout)
    assert shown == {
        "model": "tiny",
        "options": {"context": 8192, "kv": "q8_0", "shift": None, "draft": None},
    }
    assert "context  default\n" in cli("set", "tiny", "context", "default").stdout
    assert "shift    on\n" in cli("set", "tiny", "shift", "on").stdout
    assert "shift    off\n" in cli("set", "tiny", "shift", "off").stdout


def test_a_server_on_which_no_model_guesses_says_so(cli: Cli, server: ScriptedServer) -> None:
    done = cli("set", "tiny", "draft", "slow")
    assert "draft    slow\n" in done.stdout
    assert "no smaller model guesses on this server" in done.stderr
    assert "--secure-world host" in done.stderr
    assert cli("set", "tiny", *NO_DRAFT).stderr == ""


def test_what_was_set_of_a_model_goes_with_it(cli: Cli, gguf: Path) -> None:
    for name in ("small", "other"):
        assert cli("add", str(gguf), "--name", name).exit_code == 0
        assert cli("set", name, "kv", "q8_0").exit_code == 0
        assert cli("pin", name).exit_code == 0
    assert cli("rm", "small", "--yes").exit_code == 0
    chosen = settings.load()
    assert list(ModelChoices(chosen.model_options).all) == ["other"]
    assert Pins(chosen.pins).names == ("other",)


def test_a_server_lets_a_model_go_that_is_removed(cli: Cli, gguf: Path, server: ScriptedServer) -> None:
    assert cli("add", str(gguf), "--name", "tiny").exit_code == 0
    assert cli("rm", "tiny", "--yes").exit_code == 0
    assert [(asked.model, asked.keep_alive) for asked in server.converted] == [("tiny", 0)]


def test_a_model_that_is_removed_elsewhere_keeps_what_is_set_here(
    cli: Cli, gguf: Path, tmp_path: Path
) -> None:
    elsewhere = ("--models", str(tmp_path / "elsewhere"))
    assert cli("add", str(gguf), "--name", "small").exit_code == 0
    assert cli("add", str(gguf), "--name", "small", *elsewhere).exit_code == 0
    assert cli("set", "small", "kv", "q8_0").exit_code == 0
    assert cli("rm", "small", "--yes", *elsewhere).exit_code == 0
    assert list(ModelChoices(settings.load().model_options).all) == ["small"]


def test_ps_says_which_context_and_type_of_kv_models_have(cli: Cli, server: ScriptedServer) -> None:
    lines = cli("ps").stdout.splitlines()
    assert "CONTEXT" in lines[0]
    assert {"4096", "f16"} <= set(next(line for line in lines if line.startswith("tiny")).split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tiny", "colour", "red"), "context, kv, shift"),
        (("tiny", "shift", "yes"), "no value of shift"),
        (("tiny", "kv", "q5_1"), "no value of kv"),
        (("tiny", "context", "much"), "32k"),
        (("tiny", "context", "16k"), "trained for 8192"),
        (("nobody", "kv", "q8_0"), "no model 'nobody'"),
        (("tiny", "draft", "nobody"), "no model 'nobody'"),
        (("tiny", "draft", "tiny"), "its own draft"),
        (("tiny", "draft", "x" * 200), "no value of draft"),
    ],
)
def test_what_cannot_be_set_is_an_error_that_says_why(
    cli: Cli, server: ScriptedServer, arguments: tuple[str, ...], words: str
) -> None:
    result = cli("set", *arguments)
    assert result.exit_code == 1
    assert words in result.stderr


def test_an_option_without_a_value_is_a_usage_error(cli: Cli) -> None:
    assert cli("set", "tiny", "context").exit_code == 2


def test_without_a_server_options_are_written_down_for_the_next_one(
    cli: Cli, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "try_model", lambda *_: "")
    assert cli("add", str(gguf), "--name", "small").exit_code == 0
    assert cli("set", "small", "context", "model").exit_code == 0
    assert "trained for" in cli("set", "small", "context", "32k").stderr
    assert cli("set", "nobody", "kv", "q8_0").exit_code == 1
    assert cli("set", "small", "draft", "nobody").exit_code == 1
    assert ModelChoices(settings.load().model_options).all == {"small": ModelOptions(context="model")}
    assert cli("set", "small").stdout.split() == [
        *("context", "model", "kv", "default", "shift", "default"),
        *NO_DRAFT,
    ]
    assert cli("set", "small", "context", "100").exit_code == 0
    assert json.loads(cli("show", "small", "--json").stdout)["served_context"] == 100
