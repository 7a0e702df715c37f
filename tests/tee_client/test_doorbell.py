from __future__ import annotations

import queue
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from flexserve.errors import NormalWorldError
from flexserve.protocol.launch import MODELS_NOT_READY, MODELS_READY, NEW_MODELS
from flexserve.tee_client.doorbell import Doorbell

PATIENCE = 10  # seconds


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def test_it_rings_and_hears_why_nobody_answers_any_more() -> None:
    ours, theirs = socket.socketpair()
    reasons: queue.SimpleQueue[str] = queue.SimpleQueue()
    with ours:
        bell = Doorbell(theirs, reasons.put, lambda: None)
        bell.ring()
        assert ours.recv(16) == b"\1"
        ours.sendall(b"the application has ended")
    assert reasons.get(timeout=5) == "the application has ended"
    bell.ring()  # still safe


def test_a_line_that_breaks_off_is_the_machines_end() -> None:
    ours, theirs = socket.socketpair()
    ends: queue.SimpleQueue[str] = queue.SimpleQueue()
    Doorbell(theirs, ends.put, lambda: ends.put("gone"))
    ours.close()
    assert ends.get(timeout=5) == "gone"


def test_who_does_not_listen_holds_nobody_up() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        bell = Doorbell(theirs, lambda _why: None, lambda: None)
        for _ in range(10_000):
            bell.ring()


def test_who_wants_models_waits_for_the_answer_to_that_and_hears_when_it_fails(
    threads: ThreadPoolExecutor,
) -> None:
    ours, theirs = socket.socketpair()
    reasons: queue.SimpleQueue[str] = queue.SimpleQueue()
    with ours:
        bell = Doorbell(theirs, reasons.put, lambda: None)
        first = threads.submit(bell.make_models_ready)
        assert ours.recv(16) == NEW_MODELS
        second = threads.submit(bell.make_models_ready)
        assert ours.recv(16) == NEW_MODELS
        ours.sendall(MODELS_NOT_READY)
        assert isinstance(first.exception(PATIENCE), NormalWorldError)
        assert not second.done()
        ours.sendall(MODELS_READY + b"the application has ended")
        assert second.result(PATIENCE) is None
    assert reasons.get(timeout=PATIENCE) == "the application has ended"


def test_who_wants_models_of_nobody_hears_it_at_once(threads: ThreadPoolExecutor) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        bell = Doorbell(theirs, lambda _why: None, lambda: None)
        asked = threads.submit(bell.make_models_ready)
        assert ours.recv(16) == NEW_MODELS
    for each in (asked, threads.submit(bell.make_models_ready)):
        assert isinstance(each.exception(PATIENCE), NormalWorldError)
