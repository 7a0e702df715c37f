"""A scheduler over an application without an engine."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import msgspec

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

    def ends(self, count: int) -> list[Finished | Failed]:
        """Return the next ends of requests that are sent."""
        found: list[Finished | Failed] = []
        while len(found) < count:
            message = self.sent.get(timeout=20)
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
        self.submit(model, Work.WARM)
        assert begun.wait(timeout=20)
        self.app.inside = lambda: None
        return go_on.set


def steps(app: FakeApp) -> list[tuple[object, ...]]:
    return [call[1:] for call in app.calls if call[0] == "step"]
