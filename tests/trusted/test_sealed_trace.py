"""All that leaves the secure world for a sealed question: the same for any two of equal length."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from fake_engine import Budget, FakeSource
from fake_llama import FakeVocabulary
from fake_world import World

from flexserve.protocol.answers import Delta, Finished
from flexserve.protocol.framing import encode
from flexserve.protocol.prompts import TextPrompt
from flexserve.protocol.requests import Generate
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.sealed_exchange import Exchange
from flexserve.protocol.sealed_messages import Sealed, SealedPart
from flexserve.protocol.trusted_app import Kind
from flexserve.simulator.secure_memory import SimSecureMemory
from flexserve.testing.sealing_key import FixedKey
from flexserve.trusted.sessions import sessions
from flexserve.trusted.sessions.receipts import Receipts
from flexserve.trusted.sessions.session import Session
from flexserve.trusted.sessions.sessions import Sessions

NOW = 1_800_000_000_000
KEY = FixedKey()
TOKENS = 40
PAIRS = [("is it yes or no?>", "is it no or yes?>"), ("a" * 60 + ">", "iiii wwww" * 6 + "jjjjjj>")]


class Recorder:
    """Asks a world sealed and openly; `seen` is what a relay sees of it, `os` what its OS and disk see."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self._world, self._numbers = world, itertools.count(1000)
        self._ticks = (
            itertools.count()
        )  # a clock that depends on how often it is looked at, and on nothing else
        monkeypatch.setattr(sessions, "Session", self._timed)
        receipts = Receipts(lambda payload: bytes(64) + payload, world.app.digests, "test", lambda: NOW)
        self.seen: list[Any] = []
        self.os: dict[str, list[Any]] = {}
        self._watch(monkeypatch, SimSecureMemory, "commit")
        self._watch(monkeypatch, SimSecureMemory, "release")
        self._watch(monkeypatch, Budget, "request")
        self._watch(monkeypatch, FakeSource, "restore")
        self._sessions = Sessions(KEY.unseal, self._see, lambda: NOW, receipts)

    def _timed(self, *arguments: Any, **named: Any) -> Session:
        return Session(*arguments, **named, clock=lambda: next(self._ticks) * 0.007)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> None:
        """Record with what numbers a method is called: offsets, lengths, which chunk."""
        original = getattr(kind, name)

        def watched(it: Any, *arguments: Any, **named: Any) -> Any:
            numbers = [each for each in arguments if isinstance(each, int)]
            self.os.setdefault(name, []).append(numbers)
            return original(it, *arguments, **named)

        monkeypatch.setattr(kind, name, watched)

    def _see(self, message: Any) -> None:
        self.seen.append(message)

    def sealed(self, text: str, **sampling: Any) -> tuple[list[tuple[int, bool]], str]:
        """Return the sizes of what passed, first the request, and the answer that the client had.

        The world begins with a model that is open, and nothing of it in memory.
        """
        if not self.os:
            self._ask(text, **sampling)
        self.os = {}
        for kind in Kind:
            self._world.recall(kind)
        return self._ask(text, **sampling)

    def _ask(self, text: str, **sampling: Any) -> tuple[list[tuple[int, bool]], str]:
        self.seen.clear()
        rounding = sampling.pop("rounding", 1)
        asked = Generate(0, "a", TextPrompt(text), Sampling(**sampling), rounding, reuse=False)
        exchange = Exchange(asked, b"o" * 32, KEY.public, bytes(32), NOW)
        session = self._sessions.open(Sealed(next(self._numbers), exchange.body))
        assert session is not None
        assert isinstance(session.asked, Generate)
        self._world.app.admit(session.asked, session.take)
        self._sessions.send(self._run(session.number))
        messages = exchange.feed(b"".join(part.data for part in self.seen))
        exchange.end()
        passed = [(len(part.data), part.last) for part in self.seen if isinstance(part, SealedPart)]
        assert len(passed) == len(self.seen)
        text = "".join(message.text for message in messages if isinstance(message, Delta))
        return [(len(exchange.body), False), *passed], text

    def openly(self, text: str, **sampling: Any) -> list[int]:
        """Return the sizes of what passes when the same is asked without a seal."""
        number, before = next(self._numbers), len(self._world.sent)
        self._world.app.admit(Generate(number, "a", TextPrompt(text), Sampling(**sampling), reuse=False))
        self._run(number)
        return [len(encode(message)) for message in self._world.sent[before:]]

    def _run(self, number: int) -> Finished:
        assert self._world.begin(number) is not None
        finished = self._world.finish(number)[number].finished
        self._world.app.end(number)
        assert finished is not None
        return finished


def words(_self: object, token: int, *, special: bool = False) -> bytes:
    """The text of a token, as long as its number says."""
    return bytes([token]) * (1 + token % 7) if token < 128 else b""


@pytest.fixture
def recorder(world: World, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.setattr(FakeVocabulary, "piece", words)
    return Recorder(world, monkeypatch)


ASK: dict[str, Any] = {"max_tokens": TOKENS, "ignore_eos": True, "temperature": 0}


@pytest.mark.parametrize("pair", PAIRS, ids=["words", "letters"])
def test_questions_of_equal_length_leave_equal_traces(recorder: Recorder, pair: tuple[str, str]):
    first, os_of_first = recorder.sealed(pair[0], **ASK), recorder.os
    second, os_of_second = recorder.sealed(pair[1], **ASK), recorder.os
    assert first[0] == second[0]
    assert os_of_first == os_of_second
    assert set(os_of_first) == {"commit", "release", "request", "restore"}, "all of it was watched"
    assert first[1] != second[1], "their answers differ"
    assert len(first[0]) > 4


def test_a_receipt_is_of_one_size_as_frames_go(recorder: Recorder):
    traces = [recorder.sealed(PAIRS[0][0], **ASK, seed=seed)[0] for seed in (1, 1 << 31)]
    assert traces[0] == traces[1]


def test_where_lengths_are_rounded_answers_of_other_lengths_leave_equal_traces(recorder: Recorder):
    ends: list[dict[str, Any]] = [{}, {"max_tokens": 5}, {"max_tokens": 15, "ignore_eos": True}]
    rounded, plain = (
        [recorder.sealed(PAIRS[0][0], temperature=0, rounding=rounding, **each)[0] for each in ends]
        for rounding in (16, 1)
    )
    assert rounded[0] == rounded[1] == rounded[2]
    assert plain[0] != plain[1] != plain[2]


def test_the_same_questions_asked_openly_are_told_apart(recorder: Recorder):
    first, second = (recorder.openly(text, **ASK) for text in PAIRS[1])
    assert first != second
