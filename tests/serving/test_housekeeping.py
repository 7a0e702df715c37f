"""What the engine thread does when no request waits, over an application without an engine."""

from __future__ import annotations

import threading
from collections.abc import Callable

from scheduled import Preparation, Server

from flexserve.protocol.answers import Finished
from flexserve.protocol.memory import Recall
from flexserve.testing.fake_app import CHUNK


def test_there_is_no_housekeeping_while_a_request_is_prepared(serve: Callable[..., Server]):
    server = serve()
    preparation, looked = Preparation(server), threading.Event()
    server.submit("a")
    done = preparation.begun()
    server.memory.tidy = looked.set  # type: ignore[method-assign, assignment]
    server.scheduler.memory_changed()
    assert not looked.wait(0.1)
    done(None)
    assert looked.wait(timeout=20), "it is made up for"
    assert isinstance(server.ends(1)[0], Finished)


def test_there_is_no_housekeeping_while_another_request_is_prepared(serve: Callable[..., Server]):
    server = serve()
    preparation, looked = Preparation(server), threading.Event()
    server.submit("a")
    server.submit("a")
    first, second = preparation.begun(), preparation.begun()
    server.memory.tidy = looked.set  # type: ignore[method-assign, assignment]
    first(None)
    server.ends(1)
    assert not looked.wait(0.1)
    second(None)
    assert looked.wait(timeout=20)


def test_there_is_housekeeping_after_a_request_that_is_cancelled_as_soon_as_it_is_prepared(
    serve: Callable[..., Server],
):
    server = serve()
    preparation, looked = Preparation(server), threading.Event()
    number = server.submit("a").ticket.request
    done = preparation.begun()
    server.memory.tidy = looked.set  # type: ignore[method-assign, assignment]
    with server.scheduler._changed:  # so the engine thread does not take it meanwhile
        done(None)
        server.scheduler.cancel(number)
    assert looked.wait(timeout=20)


def test_housekeeping_goes_on_while_there_is_some_and_no_longer(serve: Callable[..., Server]):
    server = serve()
    looked, pauses = threading.Semaphore(0), iter([0.0, 0.0])

    def tidy() -> float | None:
        looked.release()
        return next(pauses, None)

    server.memory.tidy = tidy  # type: ignore[method-assign]
    server.scheduler.memory_changed()
    for _ in range(3):
        assert looked.acquire(timeout=20)
    assert not looked.acquire(timeout=0.1)


def test_a_model_comes_back_after_a_recall_though_no_request_comes(serve: Callable[..., Server]):
    server = serve()
    server.submit("a")
    server.ends(1)
    came_back = threading.Event()
    bring_in = server.app.load

    def load(model: str, size: int | None) -> None:
        bring_in(model, size)
        came_back.set()

    server.app.load = load  # type: ignore[method-assign]
    server.memory.answer(Recall(1, None, 100))
    server.scheduler.memory_changed()
    assert came_back.wait(timeout=20)
    assert server.app.models["a"].weights == 4 * CHUNK
    assert list(server.memory.rewarmed()) == ["a"]
    server.submit("a")
    server.ends(1)
    assert server.memory.rewarmed() == {}, "a request used it"
