from __future__ import annotations

import queue
import socket

from flexserve.tee_client.doorbell import Doorbell


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
