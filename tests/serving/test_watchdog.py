"""The watchdog of the engine's thread."""

from __future__ import annotations

import threading
import time

from flexserve.serving.watchdog import Watchdog
from flexserve.trusted.heartbeat import Heartbeat


def watchdog(calls: list[str], ended: threading.Event) -> Watchdog:
    def end(_seconds: float) -> None:
        calls.append("end")
        ended.set()

    def tell(seconds: float) -> None:
        calls.append("still" if seconds else "moved")

    return Watchdog(lambda: 0.0, tell, lambda: calls.append("cancel"), end, patience=0.2, grace=0.2)


def test_a_turn_in_which_nothing_moves_is_told_of_cancelled_and_then_ended() -> None:
    calls: list[str] = []
    ended = threading.Event()
    with watchdog(calls, ended).turn():
        assert ended.wait(timeout=60)
    assert calls == ["still", "cancel", "end"]


def test_that_it_moves_again_is_told_too() -> None:
    calls: list[str] = []
    told = threading.Semaphore(0)

    def tell(seconds: float) -> None:
        calls.append("still" if seconds else "moved")
        told.release()

    heart = Heartbeat()
    dog = Watchdog(lambda: heart.last, tell, lambda: None, lambda _: None, patience=1, grace=3600)
    with dog.turn():
        assert told.acquire(timeout=60)
        while not told.acquire(timeout=0.01):
            heart.beat()
    assert calls == ["still", "moved"]


def test_a_long_turn_that_gets_on_is_left_alone() -> None:
    calls: list[str] = []
    heart = Heartbeat()
    dog = Watchdog(
        lambda: heart.last,
        lambda _: None,
        lambda: calls.append("cancel"),
        lambda _: calls.append("end"),
        patience=5,
        grace=1,
    )
    with dog.turn():
        deadline = time.monotonic() + 6
        while time.monotonic() < deadline:
            heart.beat()
            time.sleep(0.01)
    assert calls == []


def test_between_turns_nothing_is_expected_to_move() -> None:
    calls: list[str] = []
    dog = watchdog(calls, threading.Event())
    with dog.turn():
        pass
    time.sleep(1)
    assert dog.still() == 0
    assert calls == []
