"""serve, ps, recall."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from servers import MODELS, Cli, ScriptedServer, Stranger, scripted_server

from flexserve import folders
from flexserve.emulator import images
from flexserve.normal import main as normal_main
from flexserve.normal.main import ServeOptions
from flexserve.testing.script import Script


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[ServeOptions]:
    """The options of each server that was started instead of starting one."""
    options: list[ServeOptions] = []

    def serve(given: ServeOptions) -> int:
        options.append(given)
        return 0

    monkeypatch.setattr(normal_main, "serve", serve)
    return options


# ---- ps


def test_ps_shows_each_model_the_os_count_and_the_label(cli: Cli, server: ScriptedServer) -> None:
    result = cli("ps")
    assert result.exit_code == 0
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    assert rows["tiny"][1:] == [
        "partial",
        "250",
        "B",
        "25",
        "1000",
        "B",
        "30",
        "B",
        "20",
        "B",
        "4096",
        "f16",
        *["in", "4", "min"],
    ]
    assert "not in memory  tiny: lacks 750 B; made way for slow" in result.stdout
    assert "the OS counts" in result.stdout
    assert "protection     scripted: A scripted world" in result.stdout
    assert "UNPROTECTED" in result.stderr


def test_ps_as_json_has_models_memory_os_and_protection(cli: Cli, server: ScriptedServer) -> None:
    states = json.loads(cli("ps", "--json").stdout)
    assert set(states) == {"protection", "models", "queued", "running", "memory", "os"}
    assert states["models"][0]["resident_fraction"] == 0.25
    assert set(states["memory"]) == {"chunk", "granted", "unused", "secure", "recalling"}
    assert states["os"]["secure_rss"] == 0
    assert states["protection"]["protected"] is False


def test_ps_wakes_nothing(cli: Cli, server: ScriptedServer) -> None:
    cli("ps")
    assert server.asked == []


@pytest.mark.parametrize("command", [("ps",), ("recall", "--all")])
def test_without_a_server_they_say_how_to_start_one(cli: Cli, command: tuple[str, ...]) -> None:
    result = cli(*command)
    assert result.exit_code == 1
    assert "error: No server answers at http://127.0.0.1:" in result.stderr
    assert "hint: Start one with `flexserve serve`" in result.stderr
    assert json.loads(cli(*command, "--json").stderr)["error"]["code"] == "no_server"


@pytest.mark.parametrize(
    "answer", [b"<html>", b"{}", b'{"error": "no"}', b"[" * 100_000, b"\xff\xfe", b'{"models": 5}']
)
@pytest.mark.parametrize("status", [200, 404])
def test_a_program_that_is_not_flexserve_is_recognised(cli: Cli, answer: bytes, status: int) -> None:
    with Stranger(answer, status) as stranger:
        result = cli("ps", "--port", str(stranger.port), "--json")
    assert result.exit_code == 1
    assert json.loads(result.stderr)["error"]["code"] == "not_flexserve"


def test_a_unix_socket_without_a_server_is_named_in_the_error(cli: Cli, tmp_path: Path) -> None:
    result = cli("ps", "--unix-socket", str(tmp_path / "socket"))
    assert f"No server answers at unix:{tmp_path / 'socket'}" in result.stderr


def test_no_proxy_of_the_environment_is_asked(
    cli: Cli, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Stranger(b"{}") as proxy:
        for variable in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.port}")
        assert cli("ps").exit_code == 0
    assert proxy.heard == []


# ---- recall


def test_recall_prints_what_the_os_got(cli: Cli, server: ScriptedServer) -> None:
    result = cli("recall", "--all")
    assert result.exit_code == 0
    assert result.stdout.startswith("the OS got 0 B back in 1.0 ms: the secure process had ")
    assert "given up: scratch of tiny" in result.stdout


def test_stop_lets_a_model_go(cli: Cli, server: ScriptedServer) -> None:
    assert "tiny goes as soon as no request runs" in cli("stop", "tiny").stdout
    assert [(told.model, told.keep_alive) for told in server.converted] == [("tiny", 0)]
    failed = cli("stop", "nosuch")
    assert failed.exit_code == 1
    assert "There is no such model" in failed.stderr


def test_recall_as_json_has_counts_before_and_after(cli: Cli, server: ScriptedServer) -> None:
    result = json.loads(cli("recall", "512M", "--deadline", "50", "--json").stdout)
    assert result["asked"] == 512 << 20
    assert set(result["measured"]) == {"freed", "before", "after"}
    assert result["plan"] == ["scratch of tiny"]


@pytest.mark.parametrize(
    "arguments", [(), ("1M", "--all"), ("plenty",), ("5x",), ("--deadline", "-1", "--all")]
)
def test_recall_takes_one_size_or_all(cli: Cli, arguments: tuple[str, ...]) -> None:
    result = cli("recall", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_a_bad_size_is_answered_with_good_ones(cli: Cli) -> None:
    assert "Write it like 512M, 1.5GiB or 4096." in cli("recall", "plenty").stderr


def test_a_size_beyond_all_bounds_is_the_callers_error(cli: Cli, server: ScriptedServer) -> None:
    result = cli("recall", "9999999999T")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: bytes: ")


# ---- serve


def test_serve_passes_flags_over_environment_over_defaults(
    cli: Cli, served: list[ServeOptions], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLEXSERVE_PORT", "1111")
    monkeypatch.setenv("FLEXSERVE_MAX_QUEUE", "7")
    monkeypatch.setenv("FLEXSERVE_KEEP_ALIVE", "10m")
    assert cli("serve", "--port", "2222", "--unix-socket", str(tmp_path / "socket")).exit_code == 0
    (options,) = served
    assert (options.host, options.port) == ("127.0.0.1", 2222)
    assert options.unix_socket == tmp_path / "socket"
    assert (options.secure.max_queue, options.secure.idle_seconds) == (7, 600)
    assert options.secure.memory == "secret"


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("5m", 300.0), ("1", 1.0)])
def test_how_long_the_engine_may_stand_still_is_a_setting(
    cli: Cli, served: list[ServeOptions], monkeypatch: pytest.MonkeyPatch, text: str, seconds: float
) -> None:
    monkeypatch.setenv("FLEXSERVE_STEP_SECONDS", text)
    assert cli("serve").exit_code == 0
    assert cli("serve", "--step-seconds", "77").exit_code == 0
    assert [options.secure.step_seconds for options in served] == [seconds, 77]


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "25h"])
def test_a_bound_that_would_end_every_step_or_none_is_refused(
    cli: Cli, served: list[ServeOptions], text: str
) -> None:
    result = cli("serve", "--step-seconds", text)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: --step-seconds: ")
    assert served == []


def test_the_help_of_serve_says_that_nothing_is_encrypted(cli: Cli) -> None:
    assert "Nothing is encrypted on its way" in " ".join(cli("serve", "--help").stdout.split())


@pytest.mark.parametrize("flag", ["--keep-alive", "--idle-seconds"])
@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("0", 0.0), ("1.5h", 5400.0)])
def test_serve_understands_times(
    cli: Cli, served: list[ServeOptions], flag: str, text: str, seconds: float
) -> None:
    assert cli("serve", flag, text).exit_code == 0
    assert served[0].secure.idle_seconds == seconds


def test_a_model_may_be_kept_for_ever(cli: Cli, served: list[ServeOptions]) -> None:
    cli("serve", "--keep-alive", "-1")
    assert served[0].secure.idle_seconds > 300 * 86400


def test_plain_memory_is_called_unprotected(cli: Cli, served: list[ServeOptions]) -> None:
    assert "UNPROTECTED" in cli("serve", "--memory", "plain").stderr
    assert "UNPROTECTED" not in cli("serve").stderr


@pytest.mark.parametrize(
    ("flag", "value"),
    [("port", "65536"), ("port", "http"), ("memory", "safe"), ("threads", "-1"), ("max-queue", "0")],
)
def test_serve_refuses_flags_out_of_bounds(
    cli: Cli, served: list[ServeOptions], flag: str, value: str
) -> None:
    assert cli("serve", f"--{flag}", value).exit_code == 2
    assert served == []


def test_a_time_that_is_none_is_named_by_its_flag(cli: Cli, served: list[ServeOptions]) -> None:
    result = cli("serve", "--keep-alive", "soon")
    assert result.exit_code == 1
    assert "error: --keep-alive: Write it like 10m" in result.stderr


def test_an_address_that_is_taken_is_said_before_a_machine_is_built(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(**_what: object) -> None:
        pytest.fail("a machine was built")

    monkeypatch.setattr(images, "images_for", build)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = cli("serve", "--platform", "trustzone", "--port", str(taken.getsockname()[1]))
    assert result.exit_code == 1
    assert "Cannot listen" in result.stderr


def test_an_address_in_use_ends_serve_with_a_hint(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = cli("serve", "--port", str(taken.getsockname()[1]))
    assert result.exit_code == 1
    assert "hint: Choose another with --port" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_status_of_the_server_is_the_commands(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Any) -> int:
        return 130

    monkeypatch.setattr(normal_main, "serve", interrupted)
    assert cli("serve", "--port", "0").exit_code == 130


def test_a_command_is_told_how_to_send_the_key_that_a_server_wants(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scripted_server(monkeypatch, MODELS, ["sk-the-only-key"]):
        for command in (("run", "tiny", "hello"), ("ps",), ("top", "--once")):
            refused = cli(*command)
            assert refused.exit_code == 1
            assert "hint: Set FLEXSERVE_API_KEY" in refused.stderr
        monkeypatch.setenv("FLEXSERVE_API_KEY", "sk-the-only-key")
        assert cli("run", "tiny", "hello").exit_code == 0


def test_serve_takes_keys_and_can_do_without_tcp(
    cli: Cli, served: list[ServeOptions], tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text("sk-of-the-file\n")
    file.chmod(0o600)
    arguments = ["--host", "none", "--socket", str(tmp_path / "s"), "--api-key-file", str(file)]
    assert cli("serve", *arguments).exit_code == 0
    (options,) = served
    assert (options.host, options.unix_socket) == (None, tmp_path / "s")
    assert [key.name for key in options.api_keys] == ["line-1"]
    assert "sk-" not in repr(options)


def test_server_and_clients_meet_at_a_socket_of_this_user_alone(
    cli: Cli, home: Path, served: list[ServeOptions]
) -> None:
    port = os.environ["FLEXSERVE_PORT"]
    path = home / f"r/flexserve/{port}.sock"
    assert cli("serve").exit_code == 0
    assert served[0].unix_socket == path
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        with ScriptedServer(sock, Script(models=MODELS)):
            assert "tiny" in cli("ps").stdout
            assert "unix:" in cli("run", "tiny", "hello", "-v").stderr
            path.parent.chmod(0o755)  # somebody else may have put it there: it is not asked
            assert f"No server answers at http://127.0.0.1:{port}" in cli("ps").stderr


def test_a_folder_for_sockets_that_others_can_enter_is_refused(
    cli: Cli, home: Path, served: list[ServeOptions]
) -> None:
    (home / "r/flexserve").mkdir(mode=0o755)
    result = cli("serve")
    assert (result.exit_code, served) == (1, [])
    assert "chmod 700" in result.stderr


def test_without_a_session_the_socket_lies_among_the_data(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "r").chmod(0o777)
    monkeypatch.setattr(os, "geteuid", lambda: 123456)
    assert folders.default_socket("127.0.0.1", 1) == home / "data/flexserve/run/1.sock"
    assert folders.default_socket("models.example", 1) is None
    assert folders.default_socket("127.0.0.1", 0) is None
