"""The service does what the normal world asks for: it runs requests, gives memory up and tells how it is."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from sharing import loaded, recall

from flexserve.protocol.answers import Failed, Finished
from flexserve.protocol.launch import SecureOptions
from flexserve.protocol.memory import Pin, Recalled
from flexserve.protocol.messages import Computing, Configure, Query, Shutdown, Status
from flexserve.protocol.model_options import ModelOptions
from flexserve.protocol.requests import Cancel
from flexserve.protocol.statuses import NpuStatus
from flexserve.protocol.trusted_app import Pool, Work
from flexserve.serving.service import Service
from flexserve.testing.fake_app import CHUNK, FakeApp, FakeModel
from flexserve.testing.trustzone import eventually

Start = Callable[..., Service]


class Sent(queue.SimpleQueue[msgspec.Struct]):
    """What a service sends to the normal world."""

    def next(self) -> msgspec.Struct:
        """Return the next message that answers somebody."""
        while isinstance(message := self.get(timeout=20), Computing):
            pass
        return message


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
def start(sent: Sent, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[Start]:
    """Start services over applications; end their threads afterwards."""
    exits = queue.SimpleQueue[int]()
    monkeypatch.setattr(os, "_exit", exits.put)
    services: list[Service] = []

    def start(app: FakeApp, **how: Any) -> Service:
        options = SecureOptions(store=tmp_path, device_key=tmp_path / "key")
        services.append(
            Service(app, options, sent.put, **({"report": sent.put, "rss": lambda: 5 * CHUNK} | how))
        )
        return services[-1]

    yield start
    for service in services:
        service.obey(Shutdown(drain=0))
        assert exits.get(timeout=20) == 0


def test_a_request_runs_and_its_end_is_reported(start: Start, sent: Sent) -> None:
    app = FakeApp(a=FakeModel(4 * CHUNK))
    reports = Sent()
    service = start(app, report=reports.put)
    asked = app.ask("a")
    service.submit(asked.ticket)
    end = reports.next()
    assert isinstance(end, Finished)
    assert end.request == asked.ticket.request
    assert sent.empty(), "what is reported has a road of its own"


def test_a_request_that_is_cancelled_ends_as_cancelled(start: Start, sent: Sent) -> None:
    app = FakeApp(a=FakeModel(4 * CHUNK))
    begun, go_on = threading.Event(), threading.Event()

    def inside() -> None:
        begun.set()
        assert go_on.wait(timeout=20)

    app.inside = inside
    service = start(app)
    asked = app.ask("a", answer=1000)
    service.submit(asked.ticket)
    assert begun.wait(timeout=20)
    service.obey(Cancel(asked.ticket.request))
    go_on.set()
    end = sent.next()
    assert isinstance(end, Failed)
    assert (end.request, end.failure.code) == (asked.ticket.request, "cancelled")


def test_a_recall_is_answered_with_what_went(start: Start, sent: Sent) -> None:
    app = FakeApp(a=loaded(8))
    start(app).obey(recall(3 * CHUNK))
    answer = sent.next()
    assert isinstance(answer, Recalled)
    assert (answer.serial, answer.returned) == (7, 3 * CHUNK)
    assert app.models["a"].weights == 5 * CHUNK


def test_recalls_and_what_comes_later_are_done_one_at_a_time_in_their_order(start: Start) -> None:
    service = start(FakeApp())
    running, ran, done = threading.Lock(), list[int](), threading.Event()

    def work(number: int) -> None:
        assert running.acquire(blocking=False), "another one runs"
        ran.append(number)
        running.release()
        if number == 9:
            done.set()

    for number in range(10):
        service.later(lambda number=number: work(number))  # type: ignore[misc]
    assert done.wait(timeout=20)
    assert ran == list(range(10))


def test_a_pinned_model_gives_its_weights_up_last(start: Start, sent: Sent) -> None:
    app = FakeApp(a=loaded(4), b=loaded(4))
    service = start(app)
    service.obey(Pin(["a"]))
    service.obey(recall(4 * CHUNK))
    sent.next()
    assert (app.models["a"].weights, app.models["b"].weights) == (4 * CHUNK, 0)


def test_a_model_is_served_with_the_draft_that_it_was_given(start: Start, sent: Sent) -> None:
    app = FakeApp(big=FakeModel(CHUNK), small=FakeModel(CHUNK, is_open=True, weights=CHUNK))
    service = start(app)
    service.obey(Configure({"big": ModelOptions(draft="small"), "small": ModelOptions(shift=True)}))
    asked = app.ask("big", answer=50, right=8)
    service.submit(asked.ticket)
    assert isinstance(sent.next(), Finished)
    assert {call[2] for call in app.calls if call[0] == "guess"} == {"small"}


def test_a_query_is_answered_with_how_things_are(start: Start, sent: Sent) -> None:
    app = FakeApp(a=loaded(3), b=FakeModel(CHUNK))
    app.pool = lambda: Pool(2 * CHUNK, 3 * CHUNK, CHUNK, 4 * CHUNK)  # type: ignore[method-assign]
    npu = NpuStatus(state="held", switches=1, held=2, jobs=3, products=4, fallbacks=5, lost=6)
    start(app, npu=lambda: npu).obey(Query(serial=11))
    status = sent.next()
    assert isinstance(status, Status)
    assert (status.serial, status.npu, status.queued, status.running) == (11, npu, 0, 0)
    assert [(it.name, it.state, it.resident) for it in status.models] == [
        ("a", "loaded", 3 * CHUNK),
        ("b", "unloaded", 0),
    ]
    memory = status.memory
    assert (memory.chunk, memory.granted, memory.secure) == (CHUNK, 2 * CHUNK, 3 * CHUNK)
    assert (memory.recalling, memory.os_secure, memory.os_rss) == (CHUNK, 4 * CHUNK, 5 * CHUNK)
    assert ("open", "b") not in app.calls, "nobody asked for it"


def test_a_model_that_came_back_unasked_says_so(start: Start) -> None:
    app = FakeApp(a=loaded(4))
    service = start(app)
    service._memory.rewarmed = lambda: {"a": (2 * CHUNK, "asked often")}  # type: ignore[method-assign]
    (status,) = service.status(1).models
    assert (status.rewarmed, status.rewarmed_for) == (2 * CHUNK, "asked often")


def test_models_that_nobody_uses_are_closed_on_demand(start: Start, sent: Sent) -> None:
    app = FakeApp(a=FakeModel(CHUNK))
    service = start(app)
    service.submit(app.ask("a", Work.WARM).ticket)
    sent.next()
    service.close_idle()
    assert eventually(lambda: ("close", "a") in app.calls)
