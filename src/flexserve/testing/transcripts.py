"""The documents' transcripts, typed again: does a command still print what its page shows?

    python -m flexserve.testing.transcripts README.md docs/trustzone.md

A block of ```console is a transcript: lines behind `$ ` are typed, the others are what they print. What ends
with ` &` serves on behind it, and is interrupted at the page's end. A block of ```python is a program that
has to end well. Numbers, sizes, times, digests and the user's folders may differ; `…` stands for anything, on
a line of its own for any lines. A comment before a block says where it is not run, and why:
`<!-- transcript: slow: WHY -->` and `root` are run by `make readme` only, `none` is not run. What a page
takes for granted is typed first: `<!-- typed before: flexserve add … -->`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from flexserve.harness.served import own_environment

ROOT = Path(__file__).parents[3]
SLOW, BY_ROOT, NEVER = "slow", "root", "none"
_PATIENCE = 240.0  # seconds for one command: on a busy machine a secure world takes a while to start
_PORTS = ("7077", "7078", "7079")  # which pages name, and which may be taken here
_PORT = re.compile(r"\b(?:" + "|".join(_PORTS) + r")\b")
_BEFORE = re.compile(r"^<!-- typed before: (.*?) -->$", re.MULTILINE)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- transcript: (\w+)(?:: (.*?))? *-->\s*\Z")
_MASKS = (
    (re.compile(r"\b[0-9a-f]{16,}\b"), "0"),
    (re.compile(r"\d+(?:[.,:]\d+)*"), "0"),
    (re.compile(r"\b0 (?:[KMGT]i)?B\b"), "0 B"),
    (re.compile(r"\b0 (?:ms|s|min|h)\b"), "0 s"),
    (re.compile(r"\b0 [KMB] parameters"), "0 parameters"),
    (re.compile(r"[ \t]+"), " "),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """A transcript (console), a program (python) or another fenced text of a page; or what is typed before.

    `line`: where its text begins; `mark`: where it is not run, and `why`.
    """

    line: int
    language: str
    text: str
    mark: str = ""
    why: str = ""

    @property
    def runs(self) -> bool:
        """Whether it can be run at all."""
        return self.language in ("before", "console", "python") and self.mark != NEVER


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """A command of a transcript, and the lines that it is to print."""

    command: str
    expected: list[str]

    @property
    def stays(self) -> bool:
        """Whether it serves on while the next ones run."""
        return self.command.endswith(" &")


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """What a command printed instead."""

    line: int
    command: str
    expected: str
    found: str

    def __str__(self) -> str:
        return (
            f"line {self.line}: $ {self.command}\n--- in the page\n{self.expected}--- printed\n{self.found}"
        )


def blocks(page: str) -> Iterator[Block]:
    """Yield what is typed before, and all that is fenced in a page."""
    for match in _BEFORE.finditer(page):
        yield Block(page[: match.start()].count("\n") + 1, "before", match[1])
    for match in _FENCE.finditer(page):
        before = page[: match.start()]
        mark, why = found.groups("") if (found := _MARK.search(before)) else ("", "")
        yield Block(before.count("\n") + 2, match[1], match[2], mark, why.strip())


def steps(block: Block) -> list[Step]:
    """Return the commands of a transcript."""
    found: list[Step] = []
    lines = iter(block.text.splitlines())
    for line in lines:
        if line.startswith("$ "):
            command = line[2:]
            while command.endswith("\\"):
                command = command[:-1] + next(lines).strip()
            found.append(Step(command.partition("  #")[0].rstrip(), []))
        elif found:
            found[-1].expected.append(line)
    return found


def alike(expected: Sequence[str], found: str, folders: dict[str, str] | None = None) -> bool:
    """Return whether `found` is what a page says, apart from what may differ.

    `folders`: how pages write the folders that were used instead.
    """
    for real, written in (folders or {}).items():
        found = found.replace(real, written)
    pattern = "".join(_pattern(line) for line in expected)
    return re.fullmatch(pattern, "".join(f"{_masked(line)}\n" for line in found.splitlines())) is not None


def _pattern(line: str) -> str:
    if line.strip() == "…":
        return r"(?:.*\n)*?"
    return ".*".join(re.escape(_masked(part, strip=False)) for part in line.strip().split("…")) + r"\n"


def _masked(text: str, *, strip: bool = True) -> str:
    for pattern, instead in _MASKS:
        text = pattern.sub(instead, text)
    return text.strip() if strip else text


class Terminal:
    """Where a page is typed: a fresh user's folders, and a shell for each command.

    A context manager: what serves on is interrupted at its end.
    """

    def __init__(self, folder: Path, environment: dict[str, str] | None = None) -> None:
        """`folder`: an empty one with a short name, for sockets lie in it. `environment`: more variables."""
        self._folder = folder
        self._place = folder / "flexserve"
        self._place.mkdir()
        for entry in ROOT.iterdir():
            if entry.name not in (".git", "build"):
                (self._place / entry.name).symlink_to(entry)
        (folder / "run").mkdir(mode=0o700)
        self._ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
        self._environment = {
            **own_environment(folder),
            "HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder / ".config"),
            "XDG_DATA_HOME": str(folder / ".local" / "share"),
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "FLEXSERVE_PORT": self._ports[_PORTS[0]],
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "NO_COLOR": "1",
            **(environment or {}),
        }
        self._folders = {f"{self._place}/": "", str(folder): "~"}
        self._serving: list[_Serving] = []

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        for each in reversed(self._serving):
            each.end()

    def run(self, block: Block) -> Iterator[Difference]:
        """Type a block; yield what differs."""
        if block.language == "before" and block.text.endswith(" &"):
            self._serve(Step(block.text, [""]))
        elif block.language != "console":
            runs = {"python": sys.executable, "before": "bash"}[block.language]
            printed, status = self._typed([runs, "-c", self._here(block.text)])
            if status:
                yield Difference(block.line, block.text.splitlines()[0], "(it ends well)\n", printed)
        for step in steps(block):
            if step.stays:
                printed = self._serve(step)
            else:
                printed, _ = self._typed(["bash", "-c", self._here(step.command)])
            if not alike(step.expected, printed, self._folders):
                expected = "".join(f"{line}\n" for line in step.expected)
                yield Difference(block.line, step.command, expected, printed)

    def _here(self, text: str) -> str:
        """Return `text` with the ports that pages name as they are here."""
        return _PORT.sub(lambda found: self._ports[found[0]], text)

    def _typed(self, command: Sequence[str]) -> tuple[str, int]:
        done = subprocess.run(
            command,
            cwd=self._place,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
        return done.stdout, done.returncode

    def _serve(self, step: Step) -> str:
        command = self._here(step.command.removesuffix(" &"))
        self._serving.append(_Serving(command, self._place, self._environment))
        return self._serving[-1].first(len(step.expected))


class _Serving:
    """A command that serves on, and what it has printed."""

    def __init__(self, command: str, place: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=place,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # its log
            text=True,
            start_new_session=True,
        )

    def first(self, count: int) -> str:
        """Return its first `count` lines; fewer where it ends before."""
        assert self._process.stdout is not None
        watch = threading.Timer(_PATIENCE, self._process.kill)
        watch.start()
        try:
            return "".join(line for _, line in zip(range(count), self._process.stdout, strict=False))
        finally:
            watch.cancel()

    def end(self) -> None:
        """Interrupt it, and wait for its end."""
        self._process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def differences(
    page: Path,
    folder: Path,
    *,
    marks: frozenset[str] = frozenset(),
    environment: dict[str, str] | None = None,
) -> list[Difference]:
    """Type all of a page that has no mark, or one of `marks`; return what differs.

    `folder` and `environment`: as Terminal's.
    """
    runs = [block for block in blocks(page.read_text()) if block.runs and block.mark in ("", *marks)]
    if all(block.language == "before" for block in runs):
        return []
    with Terminal(folder, environment) as terminal:
        return [each for block in runs for each in terminal.run(block)]


def _free_ports(count: int) -> list[str]:
    with contextlib.ExitStack() as stack:  # all open at once: none is found twice
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [str(probe.getsockname()[1]) for probe in probes]


def main(arguments: Sequence[str] | None = None) -> int:
    """Type pages; return 1 when something differs."""
    parser = argparse.ArgumentParser(prog="python -m flexserve.testing.transcripts", description=main.__doc__)
    parser.add_argument("pages", type=Path, nargs="+", metavar="PAGE.md")
    parser.add_argument("--slow", action="store_true", help="what takes minutes, or root, too")
    given = parser.parse_args(arguments)
    marks = frozenset({SLOW, BY_ROOT} if given.slow else ())
    status = 0
    for page in given.pages:
        with tempfile.TemporaryDirectory(prefix="typed-") as folder:
            for each in differences(page, Path(folder), marks=marks):
                sys.stdout.write(f"{page}, {each}\n")
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
