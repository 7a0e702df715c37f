"""Sealed requests inside the secure world: opened once, answered in frames that tell lengths at most."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import cbor2
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexserve.errors import CallerError, PeerError
from flexserve.protocol import sealed_answer
from flexserve.protocol.answers import Delta, Embedded, Failed, Finished, Started, Timings, Usage
from flexserve.protocol.messages import Query
from flexserve.protocol.prompts import ChatMessage, ChatPrompt
from flexserve.protocol.requests import Embed, Generate
from flexserve.protocol.sampling import LogitBias, Sampling
from flexserve.protocol.sealed_answer import LARGE, SMALL, TOKENS_OF_A_FRAME
from flexserve.protocol.sealed_exchange import Exchange, named_secret, seal, sealed_secret
from flexserve.protocol.sealed_messages import Sealed, SealedPart
from flexserve.protocol.sealed_pace import INTERVAL
from flexserve.protocol.sealed_request import Content, Opened, name_of
from flexserve.protocol.statuses import Failure
from flexserve.testing.sealing_key import FixedKey
from flexserve.trusted.sessions import session as session_module
from flexserve.trusted.sessions.next_secrets import LIFE, NextSecrets
from flexserve.trusted.sessions.next_secrets import MOST as MOST_NEXT
from flexserve.trusted.sessions.receipts import Receipts
from flexserve.trusted.sessions.seen import MOST, WINDOW, SeenRequests
from flexserve.trusted.sessions.session import Session
from flexserve.trusted.sessions.sessions import Sessions

NOW = 1_800_000_000_000
OWNER = b"o" * 32
KEY = FixedKey()
BODY = Exchange(Query(0), OWNER, KEY.public, bytes(32), NOW).body


class Place:
    """Sessions with a clock that a test sets, and all that left them."""

    def __init__(self) -> None:
        self.now = NOW
        self.sent: list[Any] = []
        self.signed: list[bytes] = []
        receipts = Receipts(self._sign, lambda _model: ("ab" * 32, "cd" * 32), "plain", lambda: self.now)
        self.sessions = Sessions(KEY.unseal, self.sent.append, lambda: self.now, receipts)
        self.numbers = iter(range(1, 1000))

    def _sign(self, payload: bytes) -> bytes:
        self.signed.append(payload)
        return b"signed: " + payload

    def exchange(self, asked: Any = None, owner: bytes = OWNER, *, ago: int = 0) -> Exchange:
        return Exchange(asked or question(), owner, KEY.public, bytes(32), self.now - ago)

    def open(self, body: bytes) -> Session | None:
        return self.sessions.open(Sealed(next(self.numbers), body))

    def begin(self, exchange: Exchange) -> Session:
        session = self.open(exchange.body)
        assert session is not None
        return session

    def wire(self, number: int) -> bytes:
        return b"".join(
            part.data for part in self.sent if isinstance(part, SealedPart) if part.request == number
        )


@pytest.fixture
def place() -> Place:
    return Place()


def question(text: str = "Where is the key?", **sampling: Any) -> Generate:
    return Generate(0, "tiny", ChatPrompt([ChatMessage("user", text)]), Sampling(**sampling))


def answer(place: Place, session: Session, words: list[str]) -> None:
    session.take(Started(session.number, 7))
    for word in words:
        session.take(Delta(session.number, word, 1))
    place.sessions.send(Finished(session.number, "stop", Usage(7, len(words)), Timings()))


def test_a_sealed_request_is_answered_to_its_sender(place):
    exchange = place.exchange()
    session = place.begin(exchange)
    answer(place, session, ["un", "der ", "the ", "mat"])
    messages = exchange.feed(place.wire(session.number))
    exchange.end()
    assert [type(message) for message in messages] == [Started, *[Delta] * 4, sealed_answer.Receipt, Finished]
    assert "".join(message.text for message in messages[1:5]) == "under the mat"
    assert place.sent[-1].last
    assert not any(part.last for part in place.sent[:-1])


def test_what_is_admitted_has_its_outer_number_and_an_owner_of_its_own(place):
    first, again, other = (
        place.begin(place.exchange(owner=owner)).asked for owner in (OWNER, OWNER, b"p" * 32)
    )
    assert (first.request, again.request) == (1, 2)
    assert first.owner == again.owner != other.owner
    named = place.open(place.exchange(msgspec.structs.replace(question(), owner=first.owner)).body).asked
    assert named.owner not in {first.owner, other.owner}


def test_the_progress_of_a_prompt_is_not_told_where_it_would_show_what_was_cached(place):
    asked = msgspec.structs.replace(question(), progress=True)
    assert not place.begin(place.exchange(asked)).asked.progress


def test_an_answer_has_a_seed_that_a_receipt_can_name(place):
    assert place.begin(place.exchange()).asked.sampling.seed is not None
    assert place.begin(place.exchange(question(seed=5))).asked.sampling.seed == 5


def test_vectors_and_errors_are_sealed_too(place):
    exchange = place.exchange(Embed(0, "tiny", ["a"]))
    session = place.begin(exchange)
    session.take(Started(session.number, 1))
    session.take(Embedded(session.number, [bytes(40_000)]))
    place.sessions.send(Failed(session.number, Failure("caller", "queue_full", "No.")))
    messages = exchange.feed(place.wire(session.number))
    exchange.end()
    assert [type(message) for message in messages] == [Started, Embedded, Failed]
    assert not place.signed, "an answer that fails has no receipt"
    assert not any(isinstance(message, Failed) for message in place.sent)


def test_a_receipt_says_what_was_asked_and_answered_by_which_weights(place):
    exchange = place.exchange(question(temperature=0))
    for number in (1, 2):
        session = place.begin(place.exchange(exchange.asked))
        answer(place, session, ["un", "der"])
        receipt = cbor2.loads(place.signed[-1])
        assert receipt["request"] == hashlib.sha256(msgspec.msgpack.encode(exchange.asked)).digest()
        assert receipt["answer"] == hashlib.sha256(b"under").digest()
        assert (receipt["gguf"], receipt["base"]) == (bytes.fromhex("ab" * 32), bytes.fromhex("cd" * 32))
        assert (receipt["model"], receipt["token"], receipt["counter"]) == ("tiny", bytes(32), number)
        assert (receipt["prompt_tokens"], receipt["answer_tokens"], receipt["reason"]) == (7, 2, "stop")
        sampling = msgspec.json.decode(receipt["sampling"], type=Sampling)
        assert sampling.temperature == 0
        assert sampling.seed is not None


def test_a_receipt_quotes_nothing_of_the_request(place):
    schema = json.dumps({"type": "object", "properties": {"canary" * 5000: {}}})
    asked = question("canary", stop=["canary"], logit_bias=[LogitBias("canary", 1.0)], schema=schema)
    answer(place, place.begin(place.exchange(asked)), ["canary"])
    assert b"canary" not in place.signed[-1]
    assert len(place.signed[-1]) < 1500


def test_an_answer_goes_without_a_receipt_that_cannot_be_signed(place):
    def refuse(_payload: bytes) -> bytes:
        raise CallerError("Nothing was attested yet.")

    place.sessions._receipts._sign = refuse
    exchange = place.exchange()
    session = place.begin(exchange)
    answer(place, session, ["x"])
    assert [type(message) for message in exchange.feed(place.wire(session.number))] == [
        Started,
        Delta,
        Finished,
    ]


def test_two_requests_that_are_answered_have_two_numbers(place):
    place.begin(place.exchange())
    place.numbers = iter([1])
    with pytest.raises(PeerError, match="one number"):
        place.open(place.exchange().body)


def test_answers_to_others_go_out_as_they_are(place):
    end = Finished(77, "stop", Usage(1, 1), Timings())
    place.sessions.send(end)
    assert place.sent == [end]


# ---- refusals --------------------------------------------------------------------------------------


def refused(place: Place, body: bytes) -> Failure:
    before = len(place.sent)
    assert place.open(body) is None
    assert len(place.sent) == before, "the time of a refusal tells nothing"
    place.sessions.tick()
    (told,) = place.sent[before:]
    assert isinstance(told, Failed)
    return told.failure


def brought(place: Place) -> Exchange:
    """Return a request that was opened, and brought a secret for the next one."""
    exchange = place.exchange()
    assert place.open(exchange.body) is not None
    return exchange


def continued(place: Place, earlier: Exchange) -> Exchange:
    """Return a request by the secret that `earlier` brought."""
    named = named_secret(earlier.next, "tiny", bytes(32))
    return Exchange(question(), OWNER, KEY.public, bytes(32), place.now, secret=named)


def test_every_refusal_is_the_same(place):
    late = continued(place, brought(place))
    place.now += LIFE + 1
    again = continued(place, brought(place))
    assert place.open(again.body) is not None
    seen = brought(place)
    stranger = FixedKey(bytes(range(1, 97))).public
    named = Content(
        bytes(16), place.now, OWNER, msgspec.msgpack.encode(msgspec.structs.replace(question(), request=5))
    )
    old = place.exchange()
    bodies = {
        "seen": seen.body,
        "late": place.exchange(ago=WINDOW + 1).body,
        "early": place.exchange(ago=-WINDOW - 1).body,
        "to another key": Exchange(question(), OWNER, stranger, bytes(32), place.now).body,
        "numbered": seal(named, sealed_secret("tiny", KEY.public, bytes(32))),
        "not of its model": seal(
            msgspec.structs.replace(named, asked=msgspec.msgpack.encode(question())),
            sealed_secret("big", KEY.public, bytes(32)),
        ),
        "of a secret that nobody brought": continued(place, place.exchange()).body,
        "of a secret that was used": again.body,
        "of a secret that is old": late.body,
        "cut": old.body[:-1],
        "changed": old.body[:-1] + bytes([old.body[-1] ^ 1]),
        "nothing": b"",
        "zeros": bytes(3000),
    }
    assert len({refused(place, body) for body in bodies.values()}) == 1


def test_a_request_brings_the_secret_of_the_next_one_which_takes_no_private_key(place):
    first = brought(place)
    place.sessions._unseal = None
    second = continued(place, first)
    assert place.open(second.body) is not None
    third = continued(place, second)
    place.now += LIFE
    assert place.open(third.body) is not None


def test_secrets_are_kept_up_to_a_bound_and_the_oldest_go_first():
    secrets = NextSecrets()
    brought = [number.to_bytes(32) for number in range(MOST_NEXT + 1)]
    for secret in brought:
        secrets.keep(secret, NOW)
    with pytest.raises(CallerError, match="refused"):
        secrets.take(name_of(brought[0]), NOW)
    assert secrets.take(name_of(brought[1]), NOW) == brought[1]


def test_a_request_is_answered_once_as_long_as_its_time_will_do(place):
    exchange = place.exchange(ago=-WINDOW)
    assert place.open(exchange.body) is not None
    for later in (0, WINDOW, 2 * WINDOW):
        place.now = NOW + later
        assert place.open(exchange.body) is None


def test_requests_are_remembered_up_to_a_bound_and_forgotten_when_they_are_old():
    seen = SeenRequests()
    contents = [Content(number.to_bytes(16), NOW, OWNER, b"") for number in range(MOST + 1)]
    for content in contents[:-1]:
        seen.admit(content, NOW)
    with pytest.raises(Exception, match="refused"):
        seen.admit(contents[-1], NOW)
    late = NOW + 2 * WINDOW + 1
    seen.admit(msgspec.structs.replace(contents[-1], time=late), late)


# ---- what leaves -----------------------------------------------------------------------------------


def seen_outside(words: list[str], pauses: list[float], **sampling: Any) -> list[Any]:
    """Return times and sizes of all that leaves while `words` are said after `pauses` (seconds)."""
    time: list[float] = [0.0]
    seen: list[Any] = []
    asked = question(**sampling)
    opened = Opened(Content(bytes(16), NOW, OWNER, msgspec.msgpack.encode(asked)), asked, bytes(32))
    session = Session(
        3,
        opened,
        BODY,
        lambda part: seen.append((time[0], part)),
        receipts=Receipts(lambda _: bytes(600), lambda _model: ("ab" * 32, "cd" * 32), "plain", lambda: NOW),
        clock=lambda: time[0],
    )
    session.take(Started(3, 7))
    for word, pause in zip(words, pauses, strict=True):
        time[0] += pause
        session.take(Delta(3, word, 1))
        session.tick()
    session.take(Finished(3, "stop", Usage(7, len(words)), Timings()))
    return [(when, len(part.data), part.last) for when, part in seen]


WORDS = st.text(max_size=24)


@given(st.data())
def test_what_leaves_depends_on_times_and_numbers_of_tokens_alone(data):
    count = data.draw(st.integers(0, 40))
    pauses = data.draw(st.lists(st.sampled_from([0.0, 0.001, 0.015, 0.05]), min_size=count, max_size=count))
    first, second = (data.draw(st.lists(WORDS, min_size=count, max_size=count)) for _ in "ab")
    assert seen_outside(first, pauses) == seen_outside(second, pauses)


def test_the_first_token_leaves_at_once_and_others_together():
    seen = seen_outside(["x"] * 6, [0.5, 0.001, 0.001, INTERVAL, 0.001, 0.001])
    assert [size for _, size, _ in seen] == [32, SMALL, SMALL, 4 * SMALL]
    assert seen[1][0] == 0.5


def test_a_batch_is_bounded_by_its_tokens_too():
    seen = seen_outside(["x"] * (1 + 2 * TOKENS_OF_A_FRAME), [0.5] + [0.0] * (2 * TOKENS_OF_A_FRAME))
    assert [size for _, size, _ in seen] == [32, SMALL, SMALL, SMALL, 4 * SMALL]


def test_tokens_that_wait_leave_in_time_though_no_other_comes():
    time, seen = [0.0], []
    asked = question()
    opened = Opened(Content(bytes(16), NOW, OWNER, msgspec.msgpack.encode(asked)), asked, bytes(32))
    session = Session(3, opened, BODY, seen.append, receipts=None, clock=lambda: time[0])
    session.take(Delta(3, "a", 1))
    session.take(Delta(3, "b", 1))
    assert len(seen) == 2
    session.tick()
    assert len(seen) == 2
    time[0] += INTERVAL
    session.tick()
    assert len(seen) == 3


def test_probabilities_go_in_larger_frames():
    assert {size for _, size, _ in seen_outside(["x"], [0.0], logprobs=5)[1:]} == {LARGE}


def test_an_end_of_any_size_crosses_in_bounded_messages():
    place = Place()
    exchange = place.exchange(question(echo=True))
    session = place.begin(exchange)
    session.take(Started(session.number, 1))
    session.take(Delta(session.number, "x" * 3_000_000, 0))
    place.sessions.send(Finished(session.number, "stop", Usage(1, 0), Timings()))
    parts = [part.data for part in place.sent]
    assert max(map(len, parts)) <= session_module._PART
    assert len(exchange.feed(b"".join(parts))) == 4


@settings(max_examples=200)
@given(st.binary(max_size=4000))
def test_no_body_makes_it_do_anything_but_refuse(noise):
    place = Place()
    refused(place, noise)
    refused(place, place.exchange().body[:44] + noise)
