"""The guest's agent, as the host hears it: every answer is checked and every wait bounded."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from flexserve.emulator.guest_memory import GuestMemory
from flexserve.errors import NormalWorldError
from flexserve.platforms.trustzone.agent import Agent
from flexserve.units import MIB


@contextlib.contextmanager
def answering(*answers: bytes) -> Iterator[tuple[Agent, list[bytes]]]:
    """An agent that gives these answers, one to each question, and then hangs up; and what it was asked."""
    ours, theirs = socket.socketpair()
    asked: list[bytes] = []

    def answer() -> None:
        with theirs, contextlib.suppress(OSError):
            for line in answers:
                asked.append(theirs.recv(4096))
                theirs.sendall(line)
            theirs.shutdown(socket.SHUT_WR)
            theirs.recv(1)

    thread = threading.Thread(target=answer, daemon=True)
    with ours:
        thread.start()
        yield Agent(ours), asked
    thread.join(timeout=5)


def test_a_question_is_a_line_of_words_and_its_answer_an_object() -> None:
    with answering(b'{"status": 0}\n') as (agent, asked):
        assert agent.ask("run", "hog", "80") == {"status": 0}
    assert asked == [b"run hog 80\n"]


def test_an_answer_may_come_in_pieces_and_a_late_one_is_not_taken_for_the_next() -> None:
    with answering(b'{"a": 1}\n{"late": 1}\n', b'{"b": 2}\n') as (agent, _):
        assert agent.ask("first") == {"a": 1}
        assert agent.ask("second") == {"b": 2}


def test_a_refusal_is_the_guests_fault_and_says_what() -> None:
    refusal = b'{"error": "File exists"}\n'
    with answering(refusal) as (agent, _), pytest.raises(NormalWorldError, match="'load': File") as error:
        agent.ask("load", "flexmem")
    assert error.value.code == "guest_refused"


@pytest.mark.parametrize("nonsense", [b"hello\n", b"[1]\n", b"{\n", b"\xff\n"])
def test_nonsense_is_an_error(nonsense: bytes) -> None:
    with answering(nonsense) as (agent, _), pytest.raises(NormalWorldError, match="nonsense"):
        agent.ask("ping")


def test_an_answer_without_an_end_is_an_error() -> None:
    with answering(b"x" * (2 * MIB)) as (agent, _), pytest.raises(NormalWorldError, match="no end"):
        agent.ask("ping")


def test_silence_is_waited_for_as_long_as_was_said() -> None:
    with answering(b"") as (agent, _), pytest.raises(NormalWorldError):
        agent.ask("ping", seconds=0.05)


def test_a_machine_that_is_gone_is_said() -> None:
    with answering() as (agent, _), pytest.raises(NormalWorldError, match="gone"):
        agent.ask("ping")


def test_memory_is_what_the_guest_says_when_it_can_be() -> None:
    line = b'{"total": 1000, "available": 600, "free": 500, "cached": 50, "flexmem": 300, "stall": 1.5}\n'
    with answering(line, line) as (agent, _):
        memory = GuestMemory(agent)
        sample = memory.sample()
        assert (sample.total, sample.available, sample.free, sample.stall) == (1000, 600, 500, 1.5)
        assert memory.charged(0) == 300


@pytest.mark.parametrize("value", [b"-1", b'"much"', b"1e400", b"99999999999999999999", b"null"])
def test_memory_that_cannot_be_is_an_error(value: bytes) -> None:
    with answering(b'{"total": ' + value + b"}\n") as (agent, _), pytest.raises(NormalWorldError):
        GuestMemory(agent).sample()
