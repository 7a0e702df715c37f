"""Several threads ask the application; it may be hostile."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from played_wire import PlayedWire, answer

from flexserve.errors import FlexServeError, PeerError
from flexserve.tee_client.link import Link
from flexserve.tee_client.messages import HEADER, MOST_PAYLOAD, Ask, Status

PATIENCE = 10  # seconds


def test_an_answer_has_a_status_values_and_a_payload() -> None:
    link = Link(PlayedWire(lambda kind, tag, _, __: answer(tag, Status.REFUSED, b"so", kind, 5)))
    reply = link.ask(Ask.POOL)
    assert (reply.status, reply.values[:2], reply.payload) == (Status.REFUSED, (Ask.POOL, 5), b"so")


def test_memory_is_answered_while_a_step_is_under_way() -> None:
    steps: list[int] = []
    began = threading.Event()

    def hear(kind: int, tag: int, _: tuple[int, ...], payload: bytes) -> bytes:
        if kind == Ask.STEP:
            steps.append(tag)
            began.set()
            return b""
        return answer(tag, Status.DONE, payload)

    wire = PlayedWire(hear)
    link = Link(wire)
    with ThreadPoolExecutor() as threads:
        step = threads.submit(link.ask, Ask.STEP)
        assert began.wait(PATIENCE)
        evictions = [threads.submit(link.ask, Ask.EVICT, payload=bytes([n])) for n in range(3)]
        assert [each.result(PATIENCE).payload for each in evictions] == [b"\0", b"\1", b"\2"]
        text = threads.submit(link.ask, Ask.TOKENISE)
        assert not text.done()
        wire.say(answer(steps[0], Status.DONE, b"step"))
        assert step.result(PATIENCE).payload == b"step"
        assert text.result(PATIENCE).status is Status.DONE


def test_what_is_not_about_memory_is_asked_one_at_a_time() -> None:
    asked: list[int] = []

    def hear(kind: int, tag: int, _: tuple[int, ...], __: bytes) -> bytes:
        asked.append(kind)
        return answer(tag)

    link = Link(PlayedWire(hear))
    with ThreadPoolExecutor() as threads:
        with link.turn() as had:
            assert had
            other = threads.submit(link.ask, Ask.TOKENISE)
            link.ask(Ask.KEEP)
            link.ask(Ask.KEPT)
            assert not threads.submit(_is_ours, link).result(PATIENCE)
        other.result(PATIENCE)
    assert asked == [Ask.KEEP, Ask.KEPT, Ask.TOKENISE]


def _is_ours(link: Link) -> bool:
    with link.turn(within=0.01) as had:
        return had


@pytest.mark.parametrize(
    "said",
    [
        HEADER.pack(99, 0, 1, *[0] * 5),  # no status
        HEADER.pack(0, MOST_PAYLOAD + 1, 1, *[0] * 5),
        answer(2),  # nobody asked that
        answer(1 << 63),
        b"\xff" * HEADER.size,
        None,
    ],
)
def test_an_answer_that_cannot_be_ends_the_link(said: bytes | None) -> None:
    reasons: list[FlexServeError] = []
    link = Link(PlayedWire(lambda *_: said), reasons.append)
    for _ in range(2):
        with pytest.raises(PeerError):
            link.ask(Ask.POOL)
    assert len(reasons) == 1


def test_who_waits_hears_when_the_application_has_ended() -> None:
    wire = PlayedWire(lambda *_: b"")
    link = Link(wire)
    with ThreadPoolExecutor() as threads:
        asked = [threads.submit(link.ask, Ask.POOL) for _ in range(3)]
        wire.say(None)
        for each in asked:
            assert isinstance(each.exception(PATIENCE), PeerError)


def test_an_answer_twice_ends_the_link() -> None:
    wire = PlayedWire(lambda _, tag, *__: answer(tag) * 2 if tag == 1 else b"")
    link = Link(wire)
    link.ask(Ask.POOL)
    with pytest.raises(PeerError, match="nothing that was asked"):
        link.ask(Ask.POOL)


def test_a_request_that_is_too_large_is_not_sent() -> None:
    link = Link(PlayedWire(lambda _, tag, *__: answer(tag)))
    with pytest.raises(ValueError, match="larger"):
        link.ask(Ask.LOAD, payload=bytes(MOST_PAYLOAD + 1))
    assert link.ask(Ask.POOL).status is Status.DONE
