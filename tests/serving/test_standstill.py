"""What the scheduler does about an engine that stands still."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from scheduled import Server

from flexserve.protocol.answers import Failed
from flexserve.protocol.messages import Standstill
from flexserve.serving import scheduler
from flexserve.testing.fake_app import FakeApp


class Dog:
    """A watchdog that does what a test says, and whether it watches a turn."""

    def __init__(
        self,
        last_moved: Callable[[], float],
        tell: Callable[[float], None],
        cancel: Callable[[], None],
        end: Callable[[float], None],
        *,
        patience: float,
    ) -> None:
        self.last_moved, self.tell, self.cancel, self.end = last_moved, tell, cancel, end
        self.patience, self.watching = patience, False

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        self.watching = True
        yield
        self.watching = False


@pytest.fixture
def watched(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> tuple[Server, Dog]:
    """A server, and its watchdog."""
    monkeypatch.setattr(scheduler, "Watchdog", Dog)
    server = serve()
    dog = server.scheduler._watchdog
    assert isinstance(dog, Dog)
    return server, dog


def test_a_standstill_is_told_to_the_normal_world(watched: tuple[Server, Dog]) -> None:
    server, dog = watched
    dog.tell(3.0)
    assert server.receive() == Standstill(3.0)


def test_what_moves_is_what_the_application_says_and_the_patience_is_what_the_server_was_given(
    watched: tuple[Server, Dog],
) -> None:
    server, dog = watched
    server.app.moved = 5.0
    assert (dog.last_moved(), dog.patience) == (5.0, 600.0)


def test_turns_are_watched_and_what_runs_in_one_that_stands_still_is_cancelled(
    watched: tuple[Server, Dog],
) -> None:
    server, dog = watched
    begun, seen = threading.Event(), set[bool]()

    def inside() -> None:
        seen.add(dog.watching)
        begun.set()

    server.app.inside = inside
    number = server.submit("a", prompt=1, answer=1 << 40).ticket.request
    assert begun.wait(timeout=20)
    dog.cancel()
    [end] = server.ends(1)
    assert isinstance(end, Failed)
    assert (end.request, end.failure.code) == (number, "cancelled")
    assert seen == {True}


def test_a_process_whose_engine_stands_still_ends_and_says_so(
    watched: tuple[Server, Dog], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses: list[int] = []
    monkeypatch.setattr(scheduler, "os", SimpleNamespace(_exit=statuses.append))
    watched[1].end(12.3)
    assert (statuses, capsys.readouterr().err) == ([1], "the engine stood still for 12 s\n")


def test_the_engine_thread_keeps_no_process_alive(serve: Callable[..., Server]) -> None:
    serve(FakeApp())
    engines = [thread for thread in threading.enumerate() if thread.name == "engine"]
    assert engines
    assert all(thread.daemon for thread in engines)
