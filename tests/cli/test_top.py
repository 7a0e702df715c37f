"""`flexserve top`: what it shows of a server, on terminals of any size, and when the server goes away."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time

import msgspec
import pytest
from rich.console import Console
from servers import Cli, ScriptedServer

from flexserve.cli.top_view import picture
from flexserve.cli.watched import KINDS, Watched, parts_of
from flexserve.normal import reports
from flexserve.units import GIB, MIB

AT = 1_800_000_000.0
PROTECTION = reports.Protection("secret", True, "Pages that only the secure process maps.")


def model(name: str, resident: int, weights: int, state: str = "partial") -> reports.ModelState:
    return reports.ModelState(
        *(name, state, weights, resident, resident / weights), kv=32 * MIB, scratch=0, running=False
    )


def present(at: float = AT, *models: reports.ModelState) -> reports.Present:
    return reports.Present(
        *(at, "ok", PROTECTION, None, reports.Budget(8 * GIB, "free", "8.0 GiB are free")),
        models=list(models),
        memory=reports.MemoryTotals(MIB, GIB, 16 * MIB, GIB, 0),
        os=reports.OsCounts(16 * GIB, 9 * GIB, GIB),
    )


def point(at: float) -> reports.Point:
    return reports.Point(at, 16 * GIB, 9 * GIB, GIB, 16 * MIB, 0, {"llama": (700 * MIB, 32 * MIB, 0)})


@pytest.fixture
def watched() -> Watched:
    """A server with a minute of history, a request and two decisions."""
    watched = Watched()
    watched.take(reports.Past([point(AT - age) for age in range(60, 0, -1)], 1.0))
    watched.take(present(AT, model("llama", 700 * MIB, GIB), model("\x1b[31mred", 10, 10, "loaded")))
    request = reports.RequestLine(
        *(1, "llama", AT, 132, 0, 64, "stop"),
        ttft=1450.0, queue=20.0, restore=1100.0, prefill=1430.0, decode=1500.0, restored_bytes=700 * MIB,
    )  # fmt: skip
    watched.take(reports.NewRequests([request]))
    recall = reports.Decision(2, AT, AT, "recall", 300 * MIB, 1, "another program grew")
    watched.take(reports.NewDecisions([reports.Decision(1, AT, AT, "grant", GIB, 9, "much is free"), recall]))
    return watched


def drawn(watched: Watched, width: int, height: int, *, colours: bool = True) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=colours, highlight=False)
    console.print(picture(watched, width, height, colours=colours))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_it_shows_memory_models_requests_and_decisions(watched: Watched) -> None:
    shown = drawn(watched, 160, 40, colours=False)
    for said in (
        "FlexServe  ● ready  0 running, 0 waiting  secret  Pages that only",
        "FlexServe has 1.0 GiB of 16.0 GiB; it may have 8.0 GiB",
        "weights 700 MiB",
        "partly in memory",
        "700 MiB of 1.0 GiB",
        "1,450",
        "ms to the first token = queue + restore + prompt",
        "20 + 1,100 + 330",
        "▼ recall",
        "another program grew",
    ):
        assert said in shown
    assert shown.index("recall") < shown.index("grant  ")  # the newest first


def test_a_name_cannot_take_over_the_terminal(watched: Watched) -> None:
    assert "\x1b[31mred" not in drawn(watched, 160, 40, colours=False)
    assert "[31mred" in drawn(watched, 160, 40, colours=False)


@pytest.mark.parametrize(("width", "height"), [(40, 20), (80, 24), (109, 30), (110, 30), (240, 70)])
def test_it_fits_the_terminal(watched: Watched, width: int, height: int) -> None:
    for colours in (False, True):
        lines = drawn(watched, width, height, colours=colours).splitlines()
        assert all(len(re.sub(r"\x1b\[[\d;]*m", "", line)) <= width for line in lines)
        if width >= 80:
            assert len(lines) <= height


def test_parts_add_up_to_the_machine() -> None:
    parts = parts_of(point(AT))
    assert sum(parts.values()) == 16 * GIB
    assert list(parts) == [kind.name for kind in KINDS]
    assert parts["others"] == 6 * GIB


def test_what_is_unprotected_is_said(watched: Watched) -> None:
    now = msgspec.structs.replace(present(AT + 1), protection=reports.Protection("plain", False, "Nothing."))
    watched.take(now)
    assert "plain: UNPROTECTED" in drawn(watched, 120, 40, colours=False)


def test_a_server_that_began_anew_brings_a_history_of_its_own(watched: Watched) -> None:
    watched.take(reports.Past([point(AT + 100)], 1.0))
    assert len(watched.points) == 1
    assert not watched.requests
    assert not watched.decisions


def test_a_time_without_a_secure_world_is_a_gap_and_not_zero(watched: Watched) -> None:
    had = len(watched.points)
    why = reports.Why("The secure world is restarting.", "Retry.")
    watched.take(reports.Present(AT + 1, "restarting", PROTECTION, why))
    assert len(watched.points) == had
    assert "The secure world is restarting." in drawn(watched, 120, 40, colours=False)


def test_it_looks_once_where_there_is_no_terminal(cli: Cli, server: ScriptedServer) -> None:
    for arguments in (("top",), ("top", "--once")):
        result = cli(*arguments)
        assert result.exit_code == 0, result.output
        assert "scripted: UNPROTECTED" in result.output
        assert "tiny" in result.output
    assert not server.asked


def test_each_event_is_a_line_of_json(cli: Cli, server: ScriptedServer) -> None:
    result = cli("top", "--once", "--json")
    kinds = [json.loads(line)["type"] for line in result.output.splitlines()]
    assert kinds[:2] == ["history", "state"]


def test_no_server_is_an_error(cli: Cli) -> None:
    result = cli("top")
    assert result.exit_code == 1
    assert "No server answers" in result.output


@pytest.mark.parametrize("how", ["q", "ctrl-c"])
def test_a_key_ends_it_in_a_terminal(server: ScriptedServer, how: str) -> None:
    ours, theirs = pty.openpty()
    program = [sys.executable, "-m", "flexserve.cli", "top"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen(program, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while b"Grants and recalls" not in shown:
        shown += os.read(ours, 1 << 16)
    if how == "q":
        os.write(ours, b"q")
    else:
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        try:
            shown += os.read(ours, 1 << 16)
        except OSError:  # it has closed its end
            break
    assert process.wait(30) == 0
    os.close(ours)
    assert b"Traceback" not in shown
