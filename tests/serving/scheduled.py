"""A scheduler over an application without an engine."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any

import msgspec

from flexserve.errors import FlexServeError
from flexserve.policy.eviction_policy import EvictionPolicy
from flexserve.protocol.answers import Failed, Finished
from flexserve.protocol.trusted_app import Work
from flexserve.serving.memory_manager import MemoryManager
from flexserve.serving.model_manager import ModelManager
from flexserve.serving.scheduler import Scheduler
from flexserve.testing.fake_app import FakeApp, FakeRequest


class Server:
    """A scheduler over a fake application, and what it sends."""

    def __init__(self, app: FakeApp, limit: int = 16, sequences: int = 4) -> None:
        self.app, self.sent = app, queue.SimpleQueue[msgspec.Struct]()
        self._held: list[threading.Event] = []
        self.models = ModelManager(app, idle=3600)
        self.policy = EvictionPolicy(app.chunk)
        self.memory = MemoryManager(app, self.models, self.policy, spare=lambda size, _reason: size)
        self.scheduler = Scheduler(
            *(app, self.models, self.memory, self.sent.put), limit=limit, sequences=sequences, patience=600.0
        )

    def submit(self, model: str, work: Work = Work.GENERATE, **how: Any) -> FakeRequest:
        request = self.app.ask(model, work, **how)
        self.scheduler.submit(request.ticket)
        return request

    def receive(self) -> msgspec.Struct:
        """Return what is sent next. Waits for 20 seconds, or for as long as there is an engine thread."""
        for _ in range(100):
            with contextlib.suppress(queue.Empty):
                return self.sent.get(timeout=0.2)
            assert self.scheduler._thread.is_alive(), "the engine thread ended"
        raise AssertionError("nothing is sent")

    def ends(self, count: int) -> list[Finished | Failed]:
        """Return the next ends of requests that are sent."""
        found: list[Finished | Failed] = []
        while len(found) < count:
            message = self.receive()
            if isinstance(message, Finished | Failed):
                found.append(message)
        return found

    def held_back(self, model: str) -> Callable[[], None]:
        """Have the engine busy with a request to `model` until what is returned is called."""
        begun, go_on = threading.Event(), threading.Event()

        def inside() -> None:
            begun.set()
            assert go_on.wait(timeout=20)

        self.app.inside = inside
        self._held.append(go_on)
        self.submit(model, Work.WARM)
        assert begun.wait(timeout=20)
        self.app.inside = lambda: None
        return go_on.set

    def close(self) -> None:
        """End, however a test left it."""
        for go_on in self._held:
            go_on.set()
        self.scheduler.drain(0.1)


class Preparation:
    """Requests are prepared for as long as a test wants."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._begun = queue.SimpleQueue[Callable[[FlexServeError | None], None]]()
        server.app.prepare = self._prepare  # type: ignore[method-assign]

    def _prepare(self, request: int, done: Callable[[FlexServeError | None], None]) -> None:
        self._server.app.requests[request].prepared = True
        self._begun.put(done)

    def begun(self) -> Callable[[FlexServeError | None], None]:
        """Return what ends the next preparation, once it began."""
        return self._begun.get(timeout=20)


def steps(app: FakeApp) -> list[tuple[object, ...]]:
    return [call[1:] for call in app.calls if call[0] == "step"]
