"""The watchdog of the engine's thread."""

from __future__ import annotations

import threading

import pytest

from flexserve.serving.watchdog import Watchdog


class Script:
    """The time that a watchdog sees: each of its looks is at the next of some moments.

    A look is (now, when something moved last). `calls` are what the watchdog did.
    """

    def __init__(self, *looks: tuple[float, float]) -> None:
        self._looks = iter(looks)
        self.now, self.moved = 100.0, 0.0
        self.naps: list[float] = []
        self.calls: list[tuple[str, float]] = []
        self.begun, self.over = threading.Event(), threading.Event()

    def sleep(self, seconds: float) -> None:
        assert self.begun.wait(timeout=10)
        self.naps.append(seconds)
        look = next(self._looks, None)
        if look is None:
            self.over.set()
            threading.Event().wait()  # for ever: a watchdog has no end
        else:
            self.now, self.moved = look

    def end(self, seconds: float) -> None:
        self.calls.append(("end", seconds))
        self.over.set()

    def dog(self, patience: float, grace: float) -> Watchdog:
        return Watchdog(
            lambda: self.moved,
            lambda seconds: self.calls.append(("tell", seconds)),
            lambda: self.calls.append(("cancel", self.now)),
            self.end,
            patience=patience,
            grace=grace,
            clock=lambda: self.now,
            sleep=self.sleep,
        )

    def run(self) -> None:
        """Have the watchdog take all its looks."""
        self.begun.set()
        assert self.over.wait(timeout=10)


def test_a_turn_in_which_nothing_moves_is_told_of_then_cancelled_and_then_ended() -> None:
    script = Script(*((now, 0.0) for now in (101.0, 102.0, 102.5, 109.0, 110.0, 112.0, 114.0, 114.5)))
    with script.dog(patience=10, grace=4).turn():
        script.run()
    assert script.calls == [("tell", 2.5), ("cancel", 110.0), ("end", 14.5)]


def test_that_it_moves_again_is_told_too_and_the_next_standstill_is_one_of_its_own() -> None:
    script = Script((111.0, 0.0), (112.0, 111.5), (119.0, 111.5), (121.5, 111.5), (125.0, 111.5))
    with script.dog(patience=10, grace=4).turn():
        script.run()
    assert script.calls == [
        *(("tell", 11.0), ("cancel", 111.0), ("tell", 0.0)),
        *(("tell", 7.5), ("cancel", 121.5)),
    ]


def test_a_long_turn_that_gets_on_is_left_alone() -> None:
    script = Script(*((100.0 + now, 99.0 + now) for now in range(1, 1000)))
    with script.dog(patience=10, grace=4).turn():
        script.run()
    assert script.calls == []


def test_between_turns_nothing_is_expected_to_move() -> None:
    script = Script((200.0, 0.0), (300.0, 0.0))
    dog = script.dog(patience=10, grace=4)
    assert dog.still() == 0.0, "before the first turn"
    with dog.turn():
        script.now = 103.0
        assert dog.still() == 3.0
    assert dog.still() == 0.0
    script.run()
    assert script.calls == []


def test_a_turn_that_raises_is_over() -> None:
    script = Script((200.0, 0.0))
    dog = script.dog(patience=10, grace=4)
    with pytest.raises(ZeroDivisionError), dog.turn():
        raise ZeroDivisionError
    script.run()
    assert script.calls == []


def test_the_end_follows_the_attempt_to_cancel_after_no_more_than_the_patience() -> None:
    script = Script((110.0, 0.0), (120.0, 0.0), (120.5, 0.0))
    with script.dog(patience=10, grace=100).turn():
        script.run()
    assert script.calls[1:] == [("cancel", 110.0), ("end", 20.5)]


@pytest.mark.parametrize(("patience", "grace"), [(2.0, 2.0), (20.0, 0.4), (1000.0, 1000.0)])
def test_it_looks_often_during_the_patience_and_the_grace_and_every_second(
    patience: float, grace: float
) -> None:
    script = Script((101.0, 100.0))
    script.dog(patience, grace)
    script.run()
    assert 0 < max(script.naps) <= min(1.0, patience / 10, grace / 2)


def test_the_watchdog_keeps_no_process_alive() -> None:
    script = Script()
    script.dog(patience=10, grace=4)
    dogs = [thread for thread in threading.enumerate() if thread.name == "watchdog"]
    assert dogs
    assert all(thread.daemon for thread in dogs)
    script.run()
