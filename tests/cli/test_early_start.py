"""A command that is likely to need a secure world starts it before it imports anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flexserve import cli
from flexserve.cli.worlds import begin
from flexserve.errors import NormalWorldError
from flexserve.normal import process
from flexserve.protocol.launch import SecureOptions

OPTIONS = SecureOptions(store=Path("/models"), device_key=Path("/key"))


class Early:
    """Stands in for a process that was started."""

    ended = False
    told: Sequence[str] = ()

    def tell(self, words: Sequence[str]) -> None:
        self.told = words

    def discard(self) -> None:
        self.ended = True


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> Any:
    started = Early()
    monkeypatch.setattr(process, "start_early", lambda: started)
    return started


@pytest.fixture
def sockets(home: Path) -> Path:
    """Where servers of this user have their sockets."""
    folder = home / "r" / "flexserve"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("words", [["run", "m", "Hi?"], ["chat"], ["serve", "--port", "0"]])
def test_commands_that_start_worlds_start_one_first(words: list[str], early: Any, sockets: Path) -> None:
    assert cli._start_early(words) is early


@pytest.mark.parametrize(
    "words", [[], ["list"], ["--version"], ["run", "--help"], ["serve", "--platform", "trustzone"]]
)
def test_other_commands_start_none(words: list[str], early: Any, sockets: Path) -> None:
    assert cli._start_early(words) is None


def test_where_a_server_runs_it_is_left_to_answer(early: Any, sockets: Path) -> None:
    (sockets / "7077.sock").touch()
    assert cli._start_early(["run", "m", "Hi?"]) is None
    assert cli._start_early(["serve"]) is early


def test_what_keeps_it_from_starting_is_left_for_the_command_to_tell(
    monkeypatch: pytest.MonkeyPatch, sockets: Path
) -> None:
    def refuse() -> None:
        raise NormalWorldError("No process can be started.")

    monkeypatch.setattr(process, "start_early", refuse)
    assert cli._start_early(["serve"]) is None


def test_one_that_is_not_needed_is_ended(early: Any) -> None:
    assert begin(early, None) is None
    assert early.ended


def test_one_that_is_needed_is_told_its_options(early: Any) -> None:
    begun: Any = begin(early, OPTIONS)
    assert begun is early
    assert SecureOptions.parse(early.told) == OPTIONS
    assert not early.ended


def test_where_none_was_started_there_is_none() -> None:
    assert begin(None, OPTIONS) is None
