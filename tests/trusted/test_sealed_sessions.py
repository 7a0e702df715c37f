"""Sealed requests inside the secure world: opened once, answered in frames that tell lengths at most."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexserve.protocol.messages import (
    ChatMessage,
    ChatPrompt,
    Delta,
    Embed,
    Embedded,
    Failed,
    Finished,
    Generate,
    Query,
    Sealed,
    SealedPart,
    Started,
    Timings,
    Usage,
)
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.sealed_answer import LARGE, SMALL, Receipt
from flexserve.protocol.sealed_exchange import Exchange
from flexserve.protocol.sealed_request import Content, seal
from flexserve.protocol.statuses import Failure
from flexserve.trusted.sessions import session as session_module
from flexserve.trusted.sessions.keys import LIFE, SealingKeys
from flexserve.trusted.sessions.seen import MOST, WINDOW, SeenRequests
from flexserve.trusted.sessions.session import BATCH, INTERVAL, Session
from flexserve.trusted.sessions.sessions import Sessions

NOW = 1_800_000_000_000
OWNER = b"o" * 32


class Place:
    """Sessions with a clock that a test sets, and all that left them."""

    def __init__(self) -> None:
        self.now = NOW
        self.sent: list[Any] = []
        self.keys = SealingKeys(lambda: self.now)
        self.signed: list[Session] = []
        self.sessions = Sessions(self.keys, self.sent.append, lambda: self.now, self._sign)
        self.numbers = iter(range(1, 1000))

    def _sign(self, session: Session, _finished: Finished) -> bytes | None:
        self.signed.append(session)
        return b"a receipt"

    def exchange(self, asked: Any = None, owner: bytes = OWNER, *, ago: int = 0) -> Exchange:
        public = self.keys.current().public
        return Exchange(asked or question(), owner, public, bytes(32), self.now - ago)

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
    assert [type(message) for message in messages] == [Started, *[Delta] * 4, Receipt, Finished]
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


def test_answers_to_others_go_out_as_they_are(place):
    end = Finished(77, "stop", Usage(1, 1), Timings())
    place.sessions.send(end)
    assert place.sent == [end]


# ---- refusals --------------------------------------------------------------------------------------


def refused(place: Place, body: bytes) -> Failure:
    before = len(place.sent)
    assert place.open(body) is None
    (told,) = place.sent[before:]
    assert isinstance(told, Failed)
    return told.failure


def test_every_refusal_is_the_same(place):
    seen = place.exchange()
    place.open(seen.body)
    stranger = SealingKeys(lambda: NOW).current().public
    named = Content(bytes(32), bytes(16), NOW, OWNER, msgspec.structs.replace(question(), request=5))
    old = place.exchange()
    bodies = {
        "seen": seen.body,
        "late": place.exchange(ago=WINDOW + 1).body,
        "early": place.exchange(ago=-WINDOW - 1).body,
        "to another key": Exchange(question(), OWNER, stranger, bytes(32), NOW).body,
        "numbered": seal(named, "tiny", place.keys.current().public, bytes(32)),
        "not of its model": seal(
            msgspec.structs.replace(named, asked=question()), "big", place.keys.current().public, bytes(32)
        ),
        "cut": old.body[:-1],
        "changed": old.body[:-1] + bytes([old.body[-1] ^ 1]),
        "nothing": b"",
        "zeros": bytes(3000),
    }
    assert len({refused(place, body) for body in bodies.values()}) == 1


def test_a_request_is_answered_once_as_long_as_its_time_will_do(place):
    exchange = place.exchange(ago=-WINDOW)
    assert place.open(exchange.body) is not None
    for later in (0, WINDOW, 2 * WINDOW):
        place.now = NOW + later
        assert place.open(exchange.body) is None


def test_requests_are_remembered_up_to_a_bound_and_forgotten_when_they_are_old():
    seen = SeenRequests()
    contents = [Content(bytes(32), number.to_bytes(16), NOW, OWNER, Query(0)) for number in range(MOST + 1)]
    for content in contents[:-1]:
        seen.admit(content, NOW)
    with pytest.raises(Exception, match="refused"):
        seen.admit(contents[-1], NOW)
    late = NOW + 2 * WINDOW + 1
    seen.admit(msgspec.structs.replace(contents[-1], time=late), late)


def test_a_key_serves_until_its_end_and_no_longer(place):
    public = place.keys.current().public
    first = [Exchange(question(), OWNER, public, bytes(32), NOW + at).body for at in (LIFE - 1, LIFE)]
    place.now = NOW + LIFE // 2 + 1
    assert place.keys.current().public != public
    place.now = NOW + LIFE - 1
    assert place.open(first[0]) is not None
    place.now = NOW + LIFE
    assert place.open(first[1]) is None


def test_an_attestation_never_names_a_key_that_ends_soon(place):
    for hours in range(12):
        place.now = NOW + hours * 1_000_000
        assert place.keys.current().ends - place.now >= LIFE // 2


# ---- what leaves -----------------------------------------------------------------------------------


def seen_outside(words: list[str], pauses: list[float], *, receipt: int = 600, **sampling: Any) -> list[Any]:
    """Return times and sizes of all that leaves while `words` are said after `pauses` (seconds)."""
    time: list[float] = [0.0]
    seen: list[Any] = []
    content = Content(bytes(32), bytes(16), NOW, OWNER, question(**sampling))
    session = Session(
        3,
        content,
        b"",
        lambda part: seen.append((time[0], part)),
        sign=lambda *_: bytes(receipt),
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
    seen = seen_outside(["x"] * (1 + 2 * BATCH), [0.5] + [0.0] * (2 * BATCH))
    assert [size for _, size, _ in seen] == [32, SMALL, SMALL, SMALL, 4 * SMALL]


def test_tokens_that_wait_leave_in_time_though_no_other_comes():
    time, seen = [0.0], []
    content = Content(bytes(32), bytes(16), NOW, OWNER, question())
    session = Session(3, content, b"", seen.append, sign=lambda *_: None, clock=lambda: time[0])
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
