"""Sealed requests on their way through a client that reads none of them, to an application that is played."""

from __future__ import annotations

import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from inside_world import PATIENCE, InsideWorld
from played_application import TEMPLATE, answer_to
from played_sealed import BEGIN, body

from flexserve.errors import NormalWorldError, PeerError
from flexserve.protocol import sealed_pace
from flexserve.protocol.answers import Failed
from flexserve.protocol.evidence import Attest, Attested
from flexserve.protocol.framing import FrameDecoder
from flexserve.protocol.memory import Recall
from flexserve.protocol.messages import Query, Status
from flexserve.protocol.prompts import AskTemplate, ToTokens
from flexserve.protocol.rendered import Told
from flexserve.protocol.requests import Cancel, Convert, Warm
from flexserve.protocol.sealed_messages import Sealed, SealedPart
from flexserve.tee_client.messages import Ask
from flexserve.tee_client.sealed_sessions import SealedSessions
from flexserve.tee_client.witness import Witness
from flexserve.testing.trustzone import eventually

MEMORY = {"chunk": 1, "granted": 0, "secure": 0, "recalling": 0, "os_secure": 0, "os_rss": 0}
LONG = "a conversation of more tokens than are worth to be kept>"


class SealedWorld:
    """A world that sealed requests come to."""

    def __init__(self, world: InsideWorld) -> None:
        self.world, self.played = world, world.played
        self.sent: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.sessions = SealedSessions(world.app.sealed, world.app.admit, self.sent.put)
        world.scheduler._send = self.sessions.report
        self.sessions.start(self)
        self._serial = 1000

    # ---- policy ----

    def submit(self, ticket: Any) -> None:
        self.world.scheduler.submit(ticket)

    def obey(self, message: Cancel) -> None:
        self.world.scheduler.cancel(message.request)

    def status(self, serial: int) -> Status:
        said = {"serial": serial, "models": [], "memory": MEMORY, "queued": 3, "running": 0}
        return msgspec.convert(said, Status)

    # ---- the normal world ----

    def open(self, sealed: bytes) -> int:
        self._serial += 1
        self.sessions.open(Sealed(self._serial, sealed))
        return self._serial

    def parts(self) -> list[bytes]:
        """Return what is answered next, up to its end. Raises Refused."""
        found: list[bytes] = []
        while True:
            message = self.sent.get(timeout=PATIENCE)
            if isinstance(message, Failed):
                raise Refused(message)
            if isinstance(message, SealedPart):
                found.append(message.data)
                if message.last:
                    return found

    def ask(self, prompt: str = "hello>", **how: Any) -> list[bytes]:
        self.open(body(prompt, **how))
        return self.parts()

    def say(self, prompt: str = "hello>", **how: Any) -> str:
        begin, *frames = self.ask(prompt, **how)
        assert begin == BEGIN
        assert [frame[:1] for frame in frames] == [b"F"] * (len(frames) - 1) + [b"L"]
        return b"".join(frame[1:] for frame in frames).decode()

    def answered(self, told: Any) -> list[Any]:
        """Return the answer to a question."""
        begin, last = self.ask("", most=0, told=told, model=getattr(told, "model", ""))
        assert begin == BEGIN
        decoder: FrameDecoder[Any] = FrameDecoder(Any)
        return decoder.feed(last[1:])


class Refused(Exception):
    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.failure.message)
        self.code = failed.failure.code


@pytest.fixture
def sealed(world: InsideWorld) -> SealedWorld:
    return SealedWorld(world)


def test_a_sealed_request_is_answered_in_frames(sealed: SealedWorld) -> None:
    assert sealed.say("hello>") == answer_to("hello>")
    assert sealed.played.sealed.sessions == {}
    assert sealed.say("and again>") == answer_to("and again>")


def test_frames_leave_by_tokens_and_time(sealed: SealedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_pace, "INTERVAL", 1e9)
    _, *frames = sealed.ask("hello>")
    assert [len(frame) - 1 for frame in frames] == [1, 7], "the first token leaves at once"
    monkeypatch.setattr(sealed_pace, "INTERVAL", 0.0)
    _, *frames = sealed.ask("and again>")
    assert [len(frame) - 1 for frame in frames] == [1] * 8 + [0]


def test_a_request_goes_by_the_terms_that_its_sender_tells(sealed: SealedWorld) -> None:
    assert sealed.say(told=Told(priority=1, keep_alive=0.0)) == answer_to("hello>")
    assert eventually(lambda: sealed.world.app.memory()[0].weights == 0)


def test_what_cannot_be_opened_is_refused_alike(sealed: SealedWorld) -> None:
    good = body("hello>")
    for wrong in (b"", good[:-1], good[:-40] + b"\xff" * 40, good.replace(b"\x94", b"\xc1")):
        sealed.open(wrong)
        with pytest.raises(Refused) as refused:
            sealed.parts()
        assert refused.value.code == "sealed_refused"
    assert sealed.played.sealed.sessions == {}


def test_a_model_that_is_not_there_is_named(sealed: SealedWorld) -> None:
    with pytest.raises(Refused) as refused:
        sealed.ask(model="zz")
    assert refused.value.code == "model_not_found"


def test_terms_that_are_none_are_refused_in_the_answer(sealed: SealedWorld) -> None:
    _, last = sealed.ask(told={"priority": "much"})
    assert b"sealed_refused" in last
    _, last = sealed.ask("", most=0, told=Warm(0, "c"), model="a")
    assert b"sealed_refused" in last


def test_questions_are_answered_by_what_the_normal_world_knows(sealed: SealedWorld) -> None:
    [status] = sealed.answered(Query(0))
    assert status["queued"] == 3
    *_, converted, finished = sealed.answered(Convert(0, "a", AskTemplate()))
    assert (converted["text"], finished["reason"]) == (TEMPLATE, "stop")
    assert sealed.answered(Warm(0, "a"))[-1]["reason"] == "stop"
    sealed.answered(Convert(0, "a", ToTokens(""), 0.0))
    assert eventually(lambda: sealed.world.app.memory()[0].weights == 0)


def test_a_conversation_is_continued_by_its_owner(sealed: SealedWorld) -> None:
    first = sealed.say(LONG)
    entry = sealed.world.app._open["a"]
    assert [len(slot.tokens) for slot in entry.conversations._slots] == [len(LONG) + len(first), 0]
    sealed.say(f"{LONG}{first}more>")
    assert len(entry.conversations._slots[0].tokens) > len(LONG) + len(first)
    sealed.say(LONG, owner="another")
    assert all(slot.tokens for slot in entry.conversations._slots)


def test_a_conversation_is_sealed_and_taken_in_again(
    sealed: SealedWorld, make_world: Callable[..., InsideWorld]
) -> None:
    sealed.say(LONG)
    app = sealed.world.app
    app.grant(app.sealing_size("a", 0), 0)
    app.seal("a", 0)
    sealed.world.memory.answer(Recall(1, demand=None, deadline=5000))
    assert sealed.say(f"{LONG}more>") == answer_to(f"{LONG}more>")
    assert app.kv_status().resumed == 1
    other = SealedWorld(make_world())
    other.say(LONG)
    assert other.world.app.kv_status().resumed == 1, "another process takes it in, too"
    assert other.world.app.kv_status().resumed_tokens >= 32


def test_a_request_is_broken_off(sealed: SealedWorld) -> None:
    sealed.say()
    numbers: list[int] = []
    sealed.played.between_slices = lambda: sealed.world.scheduler.cancel(numbers[0])
    numbers.append(sealed.open(body("hello>")))
    _, *_, last = sealed.parts()
    assert b"cancelled" in last
    assert sealed.played.sealed.sessions == {}


def test_a_request_is_broken_off_between_its_opening_and_its_run(sealed: SealedWorld) -> None:
    sealed.say()
    admit = sealed.world.app.admit

    def cancelled(message: Any, send: Any) -> Any:
        sealed.sessions.cancel(message.request)
        return admit(message, send)

    sealed.sessions._admit = cancelled
    _, *_, last = sealed.ask("hello>")
    assert b"cancelled" in last


def test_an_answer_that_the_application_has_lost_is_cut_off(sealed: SealedWorld) -> None:
    sealed.say()
    sealed.played.between_slices = sealed.played.sealed.sessions.clear
    sealed.open(body("hello>"))
    assert list(sealed.parts())[-1] == b""


def test_one_number_is_one_request(sealed: SealedWorld) -> None:
    with sealed.world.app._app.turn():  # nothing is opened meanwhile
        number = sealed.open(body("hello>"))
        with pytest.raises(PeerError):
            sealed.sessions.open(Sealed(number, body("hello>")))


# ---- models, and who it is -----------------------------------------------------------------------


def test_a_model_of_another_key_waits_for_a_block_of_its_own(store: Path, sealed: SealedWorld) -> None:
    own = (store / "models/a.flex").read_bytes()[:8192]
    sealed.played.sealed.foreign.add(own)
    model = sealed.world.app._services.files.manifest("a").model_id
    asked: list[str] = []

    def provide() -> None:
        asked.append("models")
        (store / f"images/{model}-inside.block").write_bytes(own[:-64] + bytes(64))

    sealed.world.app._services.files._make_models_ready = provide
    assert sealed.say() == answer_to("hello>")
    assert asked == ["models"]


def test_a_model_for_which_nobody_makes_a_block_is_refused_and_not_asked_for_again(
    store: Path, sealed: SealedWorld
) -> None:
    asked: list[str] = []
    sealed.world.app._services.files._make_models_ready = lambda: asked.append("models")
    sealed.played.sealed.foreign.add((store / "models/a.flex").read_bytes()[:8192])
    for _ in range(2):
        with pytest.raises(Refused, match="another device"):
            sealed.ask()
    assert asked == ["models"]


def test_a_model_whose_block_cannot_be_made_now_is_not_taken_for_a_damaged_one(
    store: Path, sealed: SealedWorld
) -> None:
    own = (store / "models/a.flex").read_bytes()[:8192]
    sealed.played.sealed.foreign.add(own)
    model = sealed.world.app._services.files.manifest("a").model_id
    fails = iter([True, False])

    def provide() -> None:
        if next(fails):
            raise NormalWorldError("The host has too much to do.", hint="Try again.", code="models_not_ready")
        (store / f"images/{model}-inside.block").write_bytes(own[:-64] + bytes(64))

    sealed.world.app._services.files._make_models_ready = provide
    with pytest.raises(Refused) as refused:
        sealed.ask()
    assert refused.value.code == "models_not_ready"
    assert sealed.say() == answer_to("hello>")


def test_it_says_who_it_is_and_tells_the_application_of_all_models(sealed: SealedWorld) -> None:
    identity = msgspec.msgpack.encode([[b"root", b"certificate"], b"measured"])
    witness = Witness(sealed.world.app.sealed, sealed.world.app._services.files, identity, sealed.sent.put)
    witness.ask(Attest(7, bytes(32)))
    said = sealed.sent.get(timeout=PATIENCE)
    assert said == Attested(7, [b"root", b"certificate"], b"token of " + bytes(32) + b"measured")
    assert sealed.played.asked.count(Ask.KNOW) == 2


def test_a_model_that_was_removed_is_in_no_token_any_more(
    sealed: SealedWorld, store: Path, tmp_path: Path
) -> None:
    requests, files = sealed.world.app.sealed, sealed.world.app._services.files
    identity = msgspec.msgpack.encode([[b"certificate"], b"measured"])
    witness = Witness(requests, files, identity, sealed.sent.put)

    def named() -> set[bytes]:
        witness.ask(Attest(1, bytes(32)))
        sealed.sent.get(timeout=PATIENCE)
        return set(sealed.played.sealed.known)

    removed, both = store / "models/a.flex", named()
    removed.rename(tmp_path / "a.flex")
    assert named() == both - {(tmp_path / "a.flex").read_bytes()[:8192]}
    (tmp_path / "a.flex").rename(removed)
    assert named() == both


def test_it_says_nothing_that_nobody_certified(sealed: SealedWorld) -> None:
    witness = Witness(sealed.world.app.sealed, sealed.world.app._services.files, b"", sealed.sent.put)
    witness.ask(Attest(7, bytes(32)))
    said = sealed.sent.get(timeout=PATIENCE)
    assert said.failure.code == "not_certified"
