"""free, limit, pin, unpin, log."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from servers import Cli, ScriptedServer

from flexserve import settings
from flexserve.cli import memory
from flexserve.normal import main as normal_main
from flexserve.normal.client import Client
from flexserve.normal.main import ServeOptions
from flexserve.normal.pins import Pins
from flexserve.normal.reports import Decision, DecisionLog
from flexserve.units import GIB, MIB


def test_free_says_what_is_available_and_for_how_long(cli: Cli, server: ScriptedServer) -> None:
    result = cli("free", "512M", "--hold", "5")
    assert result.exit_code == 0
    assert "48.0 GiB are available" in result.stdout
    assert "no model gets any of 512 MiB for 5 s" in result.stdout
    assert json.loads(cli("free", "1G", "--json").stdout)["asked"] == GIB


def test_free_fails_when_there_is_too_little_after_all(cli: Cli, server: ScriptedServer) -> None:
    result = cli("free", "60G")
    assert result.exit_code == 1
    assert "48.0 GiB are available, less than 60.0 GiB" in result.stdout
    assert "There are only 64.0 GiB of memory here" in cli("free", "65G").stderr


@pytest.mark.parametrize(
    "arguments", [("free", "much"), ("free",), ("limit", "much"), ("free", "1G", "--hold", "-1")]
)
def test_a_wrong_argument_is_a_usage_error(
    cli: Cli, server: ScriptedServer, arguments: tuple[str, ...]
) -> None:
    assert cli(*arguments).exit_code == 2


def test_limit_sets_shows_and_lifts_the_cap(cli: Cli, server: ScriptedServer) -> None:
    assert "limit    2.0 GiB" in cli("limit", "2G").stdout
    assert json.loads(cli("limit", "--json").stdout)["cap"] == 2 * GIB
    assert "limit    none" in cli("limit", "none").stdout


def test_serve_takes_its_cap_from_the_flag_or_the_environment(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[ServeOptions] = []

    def serve(options: ServeOptions) -> int:
        served.append(options)
        return 0

    monkeypatch.setattr(normal_main, "serve", serve)
    monkeypatch.setenv("FLEXSERVE_MAX_MEMORY", "512MiB")
    cli("serve")
    cli("serve", "--max-memory", "2G")
    cli("serve", "--max-memory", "none")
    assert [options.max_memory for options in served] == [512 * MIB, 2 * GIB, None]
    wrong = cli("serve", "--max-memory", "much")
    assert wrong.exit_code == 1
    assert "--max-memory" in wrong.stderr


def test_a_pinned_model_is_shown_and_written_down(cli: Cli, server: ScriptedServer) -> None:
    assert cli("pin", "tiny").stdout == "pinned tiny\n"
    assert "partial, pinned" in cli("ps").stdout
    assert cli("unpin", "tiny").stdout == "unpinned tiny\n"
    assert "pinned" not in cli("ps").stdout


def test_what_is_not_there_cannot_be_pinned_nor_unpinned(cli: Cli, server: ScriptedServer) -> None:
    assert "There is no model 'nobody'" in cli("pin", "nobody").stderr
    assert "tiny is not pinned" in cli("unpin", "tiny").stderr


def test_without_a_server_a_pin_is_for_the_next_one(cli: Cli, gguf: Path) -> None:
    cli("add", str(gguf), "--name", "small")
    result = cli("pin", "small")
    assert result.exit_code == 0
    assert "the next one will do so" in result.stderr
    assert Pins(settings.load().pins).names == ("small",)
    assert cli("pin", "nobody").exit_code == 1
    cli("unpin", "small")
    assert Pins(settings.load().pins).names == ()


def test_the_log_has_a_line_for_each_decision_with_its_reason(cli: Cli, server: ScriptedServer) -> None:
    cli("free", "1G", "--hold", "7")
    cli("limit", "2G")
    lines = cli("log").stdout.splitlines()
    assert [line.split()[2] for line in lines] == ["hold", "cap"]
    assert lines[0].endswith("1.0 GiB: another program asked for it, for 7 s")
    decisions = [json.loads(line) for line in cli("log", "--json").stdout.splitlines()]
    assert [decision["kind"] for decision in decisions] == ["hold", "cap"]


def test_the_log_names_the_model_that_memory_was_granted_for(cli: Cli, server: ScriptedServer) -> None:
    assert cli("run", "hungry", "Hello", "--max-tokens", "2").exit_code == 0
    (line,) = [line for line in cli("log").stdout.splitlines() if " grant " in line]
    assert "64.0 MiB: hungry: " in line


def test_the_log_is_followed_without_repeating_or_leaving_out_a_line(
    cli: Cli, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep, pauses = time.sleep, iter(range(8))

    def pause(seconds: float) -> None:
        if threading.current_thread() is not threading.main_thread():
            return sleep(seconds)
        if (number := next(pauses, None)) is None:
            raise KeyboardInterrupt
        if number in (1, 2):
            with Client(settings.load().address()) as client:
                client.set_cap(number * GIB)
        return sleep(0.4)  # a line is shown once nothing can join it any more

    monkeypatch.setattr(time, "sleep", pause)
    cli("limit", "5G")
    result = cli("log", "--follow", "--json")
    assert result.exit_code == 130
    assert [json.loads(line)["size"] for line in result.stdout.splitlines()] == [5 * GIB, GIB, 2 * GIB]


def test_following_a_server_that_was_restarted_says_so(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Decision(7, 0.0, 0.0, "cap", 0, 1, "a person set the cap")
    pages = iter([DecisionLog(7, [line]), DecisionLog(2, [])])
    monkeypatch.setattr(Client, "decisions", lambda _self, after: next(pages))
    monkeypatch.setattr(memory, "_POLL", 0.0)
    result = cli("log", "--follow")
    assert result.exit_code == 1
    assert "was restarted" in result.stderr
