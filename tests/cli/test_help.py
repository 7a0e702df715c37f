"""Help, versions, usage errors: what a person meets first."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from servers import Cli, ScriptedServer

from flexserve import __version__
from flexserve.cli.app import app
from flexserve.cli.statuses import MEANINGS, Status

ROOT = Path(__file__).parents[2]
COMMANDS: list[str] = list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
UNTIL_CTRL_C = ["chat", "connect", "serve", "vendor serve-keys"]  # they have no result that could be JSON

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


def test_help_lists_every_command_with_a_whole_sentence(cli: Cli) -> None:
    result = cli("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert re.search(rf"^  {command}  ", result.stdout, re.MULTILINE), command
    assert "...\n" not in result.stdout.partition("\nModels:")[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_has_an_example_of_it_names_for_values_and_words_for_ranges(
    cli: Cli, command: str
) -> None:
    result = cli(*command.split(), "--help")
    assert result.exit_code == 0
    example = result.stdout.partition("Example: ")[2]
    assert f"flexserve {command}" in " ".join(example.split())
    assert not re.search(r"<[a-z]|<=|>=|\{|\b(int|float|str) range", result.stdout), result.stdout


def test_a_value_that_is_no_choice_is_told_the_choices_in_plain_words(cli: Cli) -> None:
    result = cli("serve", "--memory", "secrt")
    assert result.exit_code == Status.MISUSED
    told = " ".join(result.stderr.replace("│", " ").split())
    assert "Invalid value for '--memory': 'secrt' is not one of 'secret', 'plain'." in told


@pytest.mark.parametrize("words", [("vendor",), ("key", "--help"), ("api-key", "make")])
def test_the_first_of_two_words_is_told_which_second_ones_there_are(cli: Cli, words: tuple[str, ...]) -> None:
    result = cli(*words)
    assert result.exit_code == Status.MISUSED
    told = " ".join(result.stderr.replace("│", " ").split())
    assert f"Which {words[0]} command? There are: " in told
    assert all(command in told for command in COMMANDS if command.startswith(f"{words[0]} "))


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {*UNTIL_CTRL_C}))
def test_every_command_that_ends_by_itself_has_json_errors_included(cli: Cli, command: str) -> None:
    assert "--json" in cli(*command.split(), "--help").stdout
    result = cli(*command.split(), "--json", "--no-such-flag")
    assert result.exit_code == Status.MISUSED
    assert json.loads(result.stderr)["error"]["code"] == "misuse"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_flag_that_does_not_exist_is_misuse(cli: Cli, command: str) -> None:
    result = cli(*command.split(), "--no-such-flag")
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


# ---- exit statuses


def test_each_status_that_a_command_can_have_is_in_the_table_of_the_documents() -> None:
    table = re.findall(r"^\| `(\d+)` \| (.*) \|$", (ROOT / "docs" / "commands.md").read_text(), re.MULTILINE)
    assert {int(number): meaning for number, meaning in table} == {
        status.value: meaning for status, meaning in MEANINGS.items()
    }


def test_no_command_has_a_status_of_its_own() -> None:
    numbers = {
        (path.name, exit.lineno)
        for path in (ROOT / "src/flexserve/cli").glob("*.py")
        for exit in ast.walk(ast.parse(path.read_text()))
        if isinstance(exit, ast.Call)
        and ast.unparse(exit.func).endswith("Exit")
        and any(isinstance(number, ast.Constant) for number in exit.args)
    }
    assert not numbers


def test_a_question_that_is_not_answered_leaves_all_as_it_is(cli: Cli, gguf: Path) -> None:
    assert cli("add", str(gguf), "--name", "small").exit_code == Status.DONE
    code = "import pty, sys; sys.exit(pty.spawn([sys.executable, '-m', 'flexserve.cli', 'rm', 'small']) >> 8)"
    asked = subprocess.run([sys.executable, "-c", code], input=b"\x04", capture_output=True, check=False)
    assert asked.returncode == Status.INTERRUPTED
    assert b"Traceback" not in asked.stdout
    assert [each["name"] for each in json.loads(cli("list", "--json").stdout)["models"]] == ["small"]


def test_ctrl_c_ends_a_command_without_a_traceback(cli: Cli, server: ScriptedServer) -> None:
    command = [sys.executable, "-m", "flexserve.cli", "run", "slow", "Hello"]
    asked = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ)
    assert asked.stdout is not None
    asked.stdout.read(1)
    asked.send_signal(signal.SIGINT)
    _, said = asked.communicate()
    assert asked.returncode == Status.INTERRUPTED
    assert b"Traceback" not in said


def test_a_reader_that_goes_away_ends_a_command_quietly(cli: Cli, server: ScriptedServer) -> None:
    command = [sys.executable, "-m", "flexserve.cli", "run", "slow", "Hello"]
    asked = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ)
    assert asked.stdout is not None
    assert asked.stderr is not None
    asked.stdout.read(1)
    asked.stdout.close()
    assert asked.wait() == Status.FAILED
    assert b"Traceback" not in asked.stderr.read()


# ---- the manual


def test_the_manual_has_a_page_for_each_command(cli: Cli, tmp_path: Path) -> None:
    written = json.loads(cli("man", str(tmp_path), "--json").stdout)
    assert {f"flexserve-{command.replace(' ', '-')}" for command in COMMANDS} < {*written["pages"]}
    page = (tmp_path / "man1" / "flexserve-recall.1").read_text()
    assert ".B \\-\\-deadline MS" in page
    for meaning in MEANINGS.values():
        assert meaning.split(":")[0].replace("`", "").replace("-", "\\-") in page


def test_a_manual_that_cannot_be_written_is_an_error_with_a_hint(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = cli("man", str(tmp_path / "file"))
    assert result.exit_code == Status.FAILED
    assert "hint: Name another folder." in result.stderr


@pytest.mark.skipif(shutil.which("groff") is None, reason="there is no groff: apt install groff-base")
def test_groff_has_nothing_to_say_against_the_manual(cli: Cli, tmp_path: Path) -> None:
    assert cli("man", str(tmp_path)).exit_code == Status.DONE
    pages = sorted((tmp_path / "man1").glob("*.1"))
    command = ["groff", "-man", "-K", "utf8", "-T", "utf8", "-ww", "-z", *map(str, pages)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
