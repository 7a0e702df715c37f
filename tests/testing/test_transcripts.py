"""What the documents tell people to type can be typed: each command exists, and takes those options."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from flexserve.cli.app import app
from flexserve.testing import transcripts
from flexserve.testing.transcripts import NEVER, Block, Difference, Step, Terminal, alike, blocks, steps

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("[!C]*.md")), ROOT / "CONTRIBUTING.md"]
# What is fenced and is no command: pictures, configurations and what a log or an API says.
NO_COMMANDS = {"mermaid", "text", "nginx", "toml", "json"}
_INLINE = re.compile(r"`(flexserve [a-z][^`]+)`")  # not --install-completion: asked about, it is done
GROUP = typer.main.get_command(app)


def commands_of(page: str) -> list[str]:
    """Return the lines of code of a page that run flexserve."""
    lines = [line for block in blocks(page) for line in block.text.splitlines()]
    found = [re.sub(r"^(\$ )?(?:\w+=\S+ )*", "", line.strip()) for line in lines]
    return [line for line in found if line.startswith("flexserve ")]


def named_in(page: str) -> list[str]:
    """Return the commands that a page's sentences name, of which the arguments may be left out."""
    for block in blocks(page):
        page = page.replace(block.text, "")
    found = [re.split(r" \| | …|\[", command)[0] for command in _INLINE.findall(page)]
    return [re.sub(r" [A-Z]( |$)", r" 1\1", command) for command in found]


def refusal_of(command: str) -> str:
    """Return what the command line has against a command, which is not run; "": nothing."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if word[0] in "|&;<>":
            if word[0] == ">" and words[-1] == "2":  # of 2>
                words.pop()
            break
        words.append(word)
    with GROUP.make_context("flexserve", ["version"]) as ctx:
        try:
            name, found, arguments = GROUP.resolve_command(ctx, words[1:])  # type: ignore[attr-defined]
            found.make_context(name, arguments, parent=ctx)
        except typer.Exit as asked:  # --help
            return "" if asked.exit_code == 0 else str(asked)
        except typer.TyperException as refused:
            return refused.format_message()
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_document_is_one(page: Path) -> None:
    refused = {command: refusal_of(command) for command in commands_of(page.read_text())}
    assert not {command: why for command, why in refused.items() if why}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_a_sentence_names_is_one(page: Path) -> None:
    refused = {command: refusal_of(command) for command in named_in(page.read_text())}
    left_out = ("Missing", "Which ")  # an argument, or the second word of `flexserve vendor`
    assert not {command: why for command, why in refused.items() if why and not why.startswith(left_out)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_is_typed_or_its_page_says_why_not(page: Path) -> None:
    fenced = [block for block in blocks(page.read_text()) if block.language not in NO_COMMANDS]
    untyped = [block.line for block in fenced if not block.runs and not (block.mark == NEVER and block.why)]
    assert not untyped, f"{page.name}: make a transcript of line {untyped}, or say why it is none"
    unexplained = [block.line for block in fenced if block.mark and not block.why]
    assert not unexplained, f"{page.name}: say why line {unexplained} is typed by `make readme` only"


def test_a_block_that_is_neither_typed_nor_excused_is_noticed() -> None:
    page = """```
flexserve ps
```
<!-- transcript: none -->
```sh
flexserve ps
```
<!-- transcript: none: it takes a week -->
```sh
flexserve tune
```
```console
$ flexserve ps
```
```mermaid
graph
```
"""
    assert [(block.runs, block.mark, block.why) for block in blocks(page)] == [
        (False, "", ""),
        (False, "none", ""),
        (False, "none", "it takes a week"),
        (True, "", ""),
        (False, "", ""),
    ]


def test_a_container_runs_a_command_that_there_is_where_its_page_says() -> None:
    text = (ROOT / "deploy" / "Containerfile").read_text().replace("\\\n", " ")
    said = dict(line.split(None, 1) for line in text.splitlines() if line and line[0] != "#")
    assert refusal_of(" ".join(json.loads(said["ENTRYPOINT"]) + json.loads(said["CMD"]))) == ""
    page = (ROOT / "docs" / "operate.md").read_text()
    assert f"--volume flexserve:{said['VOLUME']} " in page
    assert f":{said['EXPOSE']} " in page


def test_every_target_that_a_document_names_is_one() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = re.compile(r"`make ([a-z][a-z-]*)|^(?:\$ )?make ([a-z][a-z-]*)", re.MULTILINE)
    named = {a or b for page in PAGES for a, b in code.findall(page.read_text())}
    assert named <= targets


def test_a_command_that_is_none_is_noticed() -> None:
    page = "```sh\nflexserve frobnicate\nflexserve ps --sideways  # look\nFLEXSERVE_PORT=1 flexserve ps\n```"
    refused = [refusal_of(command) for command in commands_of(page)]
    assert [bool(why) for why in refused] == [True, True, False]


def test_a_page_is_taken_apart_into_commands_and_what_they_print() -> None:
    mark = "<!-- transcript: slow: it takes an hour -->"
    page = f"# A\n{mark}\n```console\n$ a \\\n  b  # why\none\ntwo\n$ c &\n```\n"
    (block,) = blocks(page)
    assert (block.line, block.mark) == (4, "slow")
    (before,) = blocks("<!-- typed before: flexserve add x.gguf -->\n\nText.")
    assert (before.language, before.text) == ("before", "flexserve add x.gguf")
    assert steps(block) == [Step("a b", ["one", "two"]), Step("c &", [])]
    assert steps(block)[1].stays


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        (["took 12.5 ms"], "took 1.2 s\n", True),
        (["5.9 MiB of 12 GiB"], "300 B of 7 MiB\n", True),
        (["a  b"], "a b  \n", True),
        (["it is … here"], "it is not at all here\n", True),
        (["a", "…", "z"], "a\nb\nc\nz\n", True),
        (["a", "…", "z"], "a\nz\n", True),
        (["a"], "a\nb\n", False),
        (["a", "b"], "a\n", False),
        (["sealed"], "sealed twice\n", False),
        (["key: ~/.config/key"], "key: /tmp/x/config/key\n", True),
    ],
)
def test_only_what_may_differ_may_differ(expected: list[str], found: str, *, same: bool) -> None:
    assert alike(expected, found, {"/tmp/x/config": "~/.config"}) is same


def test_what_is_typed_is_compared_with_the_page(tmp_path: Path) -> None:
    block = Block(
        1, "console", "$ echo one\none\n$ echo two\nthree\n$ pwd\n…\n$ ls pyproject.toml\npyproject.toml\n"
    )
    with Terminal(tmp_path) as terminal:
        assert not list(terminal.run(Block(1, "before", "echo anything")))
        assert [found.command for found in terminal.run(Block(1, "before", "false"))] == ["false"]
        assert list(terminal.run(block)) == [Difference(1, "echo two", "three\n", "two\n")]
        assert [found.command for found in terminal.run(Block(1, "python", "exit(3)"))] == ["exit(3)"]
        assert not list(
            terminal.run(Block(1, "console", "$ python -c 'print(1, flush=True); input()' &\n1\n"))
        )


def test_the_command_fails_where_a_page_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ echo one\ntwo\n```\n")
    assert transcripts.main([str(page)]) == 1
    assert "$ echo one" in capsys.readouterr().out
    page.write_text("<!-- transcript: slow -->\n```console\n$ echo one\ntwo\n```\n")
    assert transcripts.main([str(page)]) == 0
    assert transcripts.main(["--slow", str(page)]) == 1
