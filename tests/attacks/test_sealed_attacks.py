"""A relay that was taken over does nothing to sealed requests that is not refused or noticed."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from flexserve.attacks import sealed
from flexserve.attacks.attempt import Attempt, Verdict, attempt
from flexserve.errors import CallerError
from flexserve.protocol.answers import Delta, Failed, Finished, Started, Timings, Usage
from flexserve.protocol.evidence import Attested
from flexserve.protocol.sealed_answer_reader import FrameOpener
from flexserve.protocol.sealed_messages import Sealed, SealedPart
from flexserve.testing.scripted_world import FACTS, IDENTITY
from flexserve.trusted.sessions import session
from flexserve.trusted.sessions.clock import steady_clock
from flexserve.trusted.sessions.next_secrets import NextSecrets
from flexserve.trusted.sessions.seen import SeenRequests
from flexserve.trusted.sessions.sessions import Sessions


class World:
    """A secure world that remembers which owner said what, as KV does."""

    def __init__(self) -> None:
        self._sent: list[Any] = []
        self._sessions = Sessions(IDENTITY.unseal, self._sent.append, steady_clock(), None)
        self._numbers = itertools.count(1)
        self._known: set[str] = set()

    def attest(self, nonce: bytes) -> Attested:
        said = IDENTITY.attest(nonce, FACTS)
        return Attested(1, said.chain, said.token)

    def sealed(self, body: bytes) -> list[bytes]:
        self._sent.clear()
        opened = self._sessions.open(Sealed(next(self._numbers), body))
        if opened is None:
            self._sessions.tick()
            assert isinstance(self._sent[0], Failed)
            raise CallerError("refused", code=self._sent[0].failure.code)
        number, owner = opened.number, opened.asked.owner  # type: ignore[union-attr]
        cached = 9 if owner in self._known else 0
        self._known.add(owner)
        opened.take(Started(number, 10))
        opened.take(Delta(number, "It sings.", 3))
        self._sessions.send(Finished(number, "stop", Usage(10, 3, cached), Timings()))
        return [part.data for part in self._sent if isinstance(part, SealedPart)]


class Scene:
    def __init__(self) -> None:
        self.secret = World()


def made(attack) -> Attempt:
    return attempt(attack, Scene())


@pytest.mark.parametrize("attack", sealed.ATTACKS, ids=lambda attack: attack.__name__)
def test_each_attack_is_stopped_and_says_by_what(attack):
    found = made(attack)
    assert found.verdict is Verdict.STOPPED, found


def test_a_world_that_forgets_requests_answers_them_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(SeenRequests, "admit", lambda *_: None)
    assert made(sealed.send_a_request_again).verdict is Verdict.SUCCEEDED


def test_a_world_that_gives_secrets_twice_answers_again_what_names_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(SeenRequests, "admit", lambda *_: None)
    monkeypatch.setattr(NextSecrets, "take", lambda kept, name, _now: kept._secrets[name][0])
    assert made(sealed.send_a_request_again_whose_secret_was_named).verdict is Verdict.SUCCEEDED


def test_a_client_that_wants_no_last_frame_is_cut_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(FrameOpener, "end", lambda _: None)
    assert made(sealed.cut_an_answer_off).verdict is Verdict.SUCCEEDED


def test_a_world_with_one_owner_for_all_mixes_clients(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        session, "admitted", lambda opened, number: msgspec.structs.replace(opened.asked, request=number)
    )
    assert made(sealed.merge_two_owners).verdict is Verdict.SUCCEEDED
