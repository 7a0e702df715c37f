"""Programs that build for minutes: what is heard of them, and that nothing of them runs on."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from flexserve.emulator import tools
from flexserve.emulator.packages import locked
from flexserve.errors import InternalError

MAKEFILE = """
.DELETE_ON_ERROR:
all: half
half:
\t@echo begun
\t@sh -c 'echo $$$$ > pid; echo half > half; exec sleep 300'
"""


def test_each_line_is_heard_in_its_order() -> None:
    heard: list[str] = []
    tools.follow("printf", "one\\ntwo\\n", heard=heard.append, seconds=60)
    assert heard == ["one\n", "two\n"]


def test_a_program_that_fails_is_an_error_with_its_last_words() -> None:
    with pytest.raises(InternalError, match="no such thing"):
        tools.follow("sh", "-c", "echo no such thing >&2; exit 3", heard=lambda _line: None, seconds=60)


def test_a_program_that_takes_too_long_is_ended() -> None:
    with pytest.raises(InternalError, match="did not end within"):
        tools.follow("sleep", "300", heard=lambda _line: None, seconds=0.2)


def test_a_build_that_is_interrupted_leaves_nothing_half_made_and_nothing_that_runs(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text(MAKEFILE)

    def interrupt(line: str) -> None:
        while not (tmp_path / "half").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tools.follow("make", "-C", tmp_path, heard=interrupt, seconds=60)
    assert not (tmp_path / "half").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_who_waits_for_another_build_says_so(tmp_path: Path) -> None:
    said, told = [], threading.Event()

    def tell(what: str) -> None:
        said.append(what)
        told.set()

    def wait() -> None:
        with locked(tmp_path / "lock", tell):
            pass

    with locked(tmp_path / "lock", lambda _what: None):
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert told.wait(60)
    waiting.join(60)
    assert said == ["waiting for another command, which builds the same"]
