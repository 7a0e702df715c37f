"""run and chat, through a server and in worlds of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import MODELS, Cli, ScriptedServer, Stranger, scripted_server

from flexserve.cli import terminal, worlds
from flexserve.normal import world
from flexserve.protocol.prompts import ChatPrompt
from flexserve.protocol.sampling import Sampling
from flexserve.testing.script import Behaviour, Script
from flexserve.testing.scripted_link import scripted_command


@pytest.fixture
def private(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worlds that a command starts for itself are scripted ones."""
    command = scripted_command(Script(models=MODELS))
    monkeypatch.setattr(world, "secure_command", lambda _, channel_fd, program: command(channel_fd))


def turns(server: ScriptedServer) -> list[list[tuple[str, str]]]:
    """Return the conversations that reached the secure world, as roles and texts."""
    prompts = [message.prompt for message in server.asked if isinstance(message.prompt, ChatPrompt)]
    return [[(turn.role, turn.content) for turn in prompt.messages] for prompt in prompts]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("run", "nosuch", "Hi"), "There is no model named 'nosuch'"),
        (("chat", "nosuch"), "There is no model named 'nosuch'"),
        (("chat",), "There is no model yet"),
    ],
)
def test_no_machine_is_booted_for_a_model_that_is_not_there(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], error: str
) -> None:
    monkeypatch.setattr(worlds, "core_for", lambda _settings: pytest.fail("a machine is booted"))
    refused = cli(*words, "--platform", "trustzone")
    assert refused.exit_code == 1
    assert f"error: {error}" in refused.stderr
    assert "hint: Get one with `flexserve pull`" in refused.stderr


# ---- run


def test_run_streams_the_answer_of_the_running_server(cli: Cli, server: ScriptedServer) -> None:
    result = cli("run", "tiny", "Hi?")
    assert result.exit_code == 0
    assert result.stdout == "Hello, world!\n"
    assert turns(server) == [[("user", "Hi?")]]


def test_run_says_who_answers_only_when_asked(cli: Cli, server: ScriptedServer) -> None:
    assert "answered by" not in cli("run", "tiny", "Hi?").stderr
    assert "answered by the server at http://127.0.0.1:" in cli("run", "tiny", "Hi?", "-v").stderr


@pytest.mark.parametrize("words", [("run", "tiny", "Hi?"), ("chat", "tiny")])
def test_what_is_for_a_secure_world_of_its_own_is_not_used_by_a_server_and_that_is_said(
    cli: Cli, server: ScriptedServer, words: tuple[str, ...]
) -> None:
    said = cli(*words, "--platform", "trustzone", "--threads", "1", stdin="").stderr
    assert "answers, as it was started (scripted); not used: --platform, --threads" in said
    assert "not used" not in cli(*words, stdin="").stderr


def test_run_passes_every_sampling_option(cli: Cli, server: ScriptedServer) -> None:
    options = ("--max-tokens", "3", "--temperature", "0", "--top-p", "0.5", "--seed", "9", "--stop", "a")
    assert cli("run", "tiny", "Hi?", *options, "--stop", "b").stdout == "Hello, world\n"
    assert server.asked[0].sampling == Sampling(
        max_tokens=3, temperature=0.0, top_p=0.5, seed=9, stop=["a", "b"]
    )


def test_run_as_json_has_the_answer_usage_timings_and_label(cli: Cli, server: ScriptedServer) -> None:
    answer = json.loads(cli("run", "tiny", "Hi?", "--json").stdout)
    assert answer["answer"] == "Hello, world!"
    assert answer["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 4, "cached_tokens": 3}
    assert answer["timings_ms"]["ttft"] == 4.0
    assert answer["protection"]["name"] == "scripted"


def test_stats_are_not_part_of_the_answer(cli: Cli, server: ScriptedServer) -> None:
    result = cli("run", "tiny", "Hi?", "--stats")
    assert result.stdout == "Hello, world!\n"
    assert "prompt 7 tokens (3 cached), answer 4 tokens (stop), first token after 4 ms" in result.stderr


@pytest.mark.parametrize("arguments", [("-",), ()])
def test_the_prompt_may_come_from_standard_input(
    cli: Cli, server: ScriptedServer, arguments: tuple[str, ...]
) -> None:
    assert cli("run", "tiny", *arguments, stdin="Grüße\n").exit_code == 0
    assert turns(server) == [[("user", "Grüße\n")]]


def test_an_empty_prompt_is_refused(cli: Cli, server: ScriptedServer) -> None:
    result = cli("run", "tiny", stdin="")
    assert result.exit_code == 1
    assert "error: The prompt is empty." in result.stderr
    assert server.asked == []


@pytest.mark.parametrize("command", ["run", "chat"])
def test_a_file_is_to_be_added_first(cli: Cli, command: str) -> None:
    result = cli(command, "models/big.gguf")
    assert result.exit_code == 1
    assert "hint: Add it first: flexserve add models/big.gguf" in result.stderr


def test_an_unknown_model_is_the_servers_error(cli: Cli, server: ScriptedServer) -> None:
    result = cli("run", "nope", "Hi?", "--json")
    assert result.exit_code == 1
    assert result.stdout == ""
    error = json.loads(result.stderr)["error"]
    assert (error["code"], error["blame"]) == ("model_not_found", "caller")


@pytest.mark.parametrize(
    ("model", "blame"), [("forged", "stored_data"), ("dies", "normal_world")], ids=["forged", "dies"]
)
def test_an_answer_that_fails_half_way_is_an_error(cli: Cli, private: None, model: str, blame: str) -> None:
    result = cli("run", model, "Hi?", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stderr.splitlines()[-1])["error"]["blame"] == blame
    assert "Traceback" not in result.stderr


def test_a_stream_that_fails_half_way_shows_what_came_and_the_error(cli: Cli, server: ScriptedServer) -> None:
    result = cli("run", "forged", "Hi?")
    assert result.exit_code == 1
    assert result.stdout == "Hello, world!"
    assert "error: A chunk is forged.\nhint: Seal it again." in result.stderr


def test_without_a_server_run_starts_worlds_of_its_own(cli: Cli, private: None) -> None:
    result = cli("run", "tiny", "Hi?", "-v")
    assert result.exit_code == 0
    assert result.stdout == "Hello, world!\n"
    assert "answered by a secure world of this command's own" in result.stderr


@pytest.mark.parametrize("command", ["run", "chat"])
def test_a_server_that_was_named_and_does_not_answer_is_not_replaced(
    cli: Cli, private: None, command: str
) -> None:
    result = cli(command, "tiny", "--port", "9", stdin="Hi?\n")
    assert result.exit_code == 1
    assert "No server answers at http://127.0.0.1:9." in result.stderr


def test_a_secure_world_that_cannot_start_says_why(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    command = scripted_command(Script(dies_at_start=True))
    monkeypatch.setattr(world, "secure_command", lambda _, channel_fd, program: command(channel_fd))
    result = cli("run", "tiny", "Hi?")
    assert result.exit_code == 1
    assert "error: The secure world exited with status 9" in result.stderr


def test_a_stranger_at_the_address_gets_no_prompt(cli: Cli, private: None) -> None:
    with Stranger(b'{"status": "ok"}') as stranger:
        result = cli("run", "tiny", "my secret", "--port", str(stranger.port))
    assert result.exit_code == 1
    assert "does not answer as FlexServe does" in result.stderr
    assert not any(b"secret" in body for body in stranger.heard)


def test_control_sequences_do_not_reach_the_terminal() -> None:
    assert terminal.printable("a\x1b[31mb\x07\x9bc\r\nd\te\x00") == "a[31mbc\nd\te"


# ---- chat


def test_chat_remembers_until_told_to_forget(cli: Cli, server: ScriptedServer) -> None:
    result = cli("chat", "tiny", stdin="one\n\ntwo\n/clear\nthree\n/exit\nfour\n")
    assert result.exit_code == 0
    assert result.stdout == "Hello, world!\n" * 3
    said = ("assistant", "Hello, world!")
    assert turns(server) == [[("user", "one")], [("user", "one"), said, ("user", "two")], [("user", "three")]]


def test_chat_ends_with_its_input(cli: Cli, server: ScriptedServer) -> None:
    assert cli("chat", "tiny", stdin="").exit_code == 0


def test_chat_helps_and_refuses_commands_it_has_not(cli: Cli, server: ScriptedServer) -> None:
    result = cli("chat", "tiny", stdin="/help\n/nonsense\n")
    assert "/clear" in result.stderr
    assert "There is no command /nonsense" in result.stderr
    assert server.asked == []


def test_a_failed_answer_is_taken_back_and_the_chat_goes_on(cli: Cli, server: ScriptedServer) -> None:
    result = cli("chat", "forged", stdin="one\ntwo\n")
    assert result.exit_code == 0
    assert result.stderr.count("error: A chunk is forged.") == 2
    assert turns(server) == [[("user", "one")], [("user", "two")]]


def test_chat_takes_the_only_model(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_server(monkeypatch, {"single": Behaviour()}) as server:
        assert cli("chat", stdin="Hi?\n").stdout == "Hello, world!\n"
        assert server.asked[0].model == "single"


@pytest.mark.parametrize("models", [{}, MODELS])
def test_chat_does_not_guess_among_models(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, models: dict[str, Behaviour]
) -> None:
    with scripted_server(monkeypatch, models):
        result = cli("chat", stdin="Hi?\n")
    assert result.exit_code == 1
    assert ("Name one: flexserve chat MODEL" if models else "flexserve add") in result.stderr


def test_chat_with_a_model_that_is_not_there_fails_at_once(cli: Cli, server: ScriptedServer) -> None:
    result = cli("chat", "nosuch", stdin="my secret\n")
    assert result.exit_code == 1
    assert "There is no model named 'nosuch'" in result.stderr
    assert "tiny" in result.stderr
    assert server.asked == []


def test_chat_works_in_worlds_of_its_own(cli: Cli, private: None) -> None:
    assert cli("chat", "tiny", stdin="one\ntwo\n").stdout == "Hello, world!\n" * 2


def test_a_conversation_leaves_no_file(cli: Cli, server: ScriptedServer, home: Path) -> None:
    cli("chat", "tiny", stdin="my secret\n")
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_bytes_that_are_no_text_are_refused_and_the_chat_goes_on(server: ScriptedServer) -> None:
    command = [sys.executable, "-m", "flexserve.cli", "chat", "tiny"]
    done = subprocess.run(command, input=b"\xff\xfe\nHi?\n", capture_output=True, check=True, timeout=30)
    assert b"error: The prompt is not UTF-8 text." in done.stderr
    assert turns(server) == [[("user", "Hi?")]]


# ---- Ctrl-C


@pytest.fixture
def talking(server: ScriptedServer) -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def start(started: list[subprocess.Popen[str]], *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "flexserve.cli", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    started.append(process)
    return process


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait; the test's own time limit ends a wait that never does."""
    while not condition():
        threading.Event().wait(0.01)


def test_ctrl_c_ends_run_quietly_and_cancels_the_request(
    server: ScriptedServer, talking: list[subprocess.Popen[str]]
) -> None:
    process = start(talking, "run", "slow", "Hi?")
    assert process.stdout is not None
    assert process.stdout.read(4) == "word"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    wait_until(lambda: server.cancelled)


def test_ctrl_c_stops_the_answer_and_not_the_chat(
    server: ScriptedServer, talking: list[subprocess.Popen[str]]
) -> None:
    process = start(talking, "chat", "slow", "--max-tokens", "4000")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("one\n")
    assert process.stdout.read(4) == "word"
    process.send_signal(signal.SIGINT)
    wait_until(lambda: server.cancelled)
    _, errors = process.communicate("/exit\n", timeout=30)
    assert process.returncode == 0
    assert "(stopped)" in errors


def test_what_was_said_before_ctrl_c_stays_in_the_conversation(
    server: ScriptedServer, talking: list[subprocess.Popen[str]]
) -> None:
    process = start(talking, "chat", "slow", "--max-tokens", "4000")
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write("one\n")
    assert process.stdout.read(4) == "word"
    for asked in (1, 2):
        wait_until(lambda asked=asked: len(server.asked) == asked)  # type: ignore[misc]
        process.send_signal(signal.SIGINT)
        while "(stopped)" not in (line := process.stderr.readline()):
            assert line, "the chat ended"
        if asked == 1:
            process.stdin.write("two\n")
    process.communicate("", timeout=30)
    first, answer, second = turns(server)[1]
    assert (first, second) == (("user", "one"), ("user", "two"))
    assert answer[0] == "assistant"
    assert answer[1].startswith("word")
