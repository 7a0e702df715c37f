"""Models that share one memory, over an application without an engine."""

from __future__ import annotations

import time
from typing import Any

from flexserve.policy.eviction_policy import EvictionPolicy
from flexserve.protocol.memory import Recall
from flexserve.serving.memory_manager import MemoryManager
from flexserve.serving.model_manager import ModelManager
from flexserve.testing.fake_app import CHUNK, FakeApp, FakeModel


def loaded(chunks: int, **how: Any) -> FakeModel:
    return FakeModel(chunks * CHUNK, is_open=True, weights=chunks * CHUNK, **how)


class Clock:
    """The time that the managers see: it passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def manager(app: FakeApp, policy: EvictionPolicy | None = None, idle: float = 3600) -> MemoryManager:
    """A memory manager of models that were used one after the other."""
    models = ModelManager(app, idle)
    for name in app.models:
        models.used(name, None)
        time.sleep(0.001)
    return MemoryManager(app, models, policy)


class SpareMemory:
    """A normal world that says how much nobody needs, and remembers what it was for."""

    def __init__(self, size: int) -> None:
        self.size, self.reasons, self.sizes = size, list[str](), list[int]()

    def __call__(self, size: int, reason: str) -> int:
        self.reasons.append(reason)
        self.sizes.append(size)
        return min(size, self.size) // CHUNK * CHUNK


def rewarming(app: FakeApp, spare: SpareMemory, idle: float = 3600) -> tuple[MemoryManager, ModelManager]:
    models = ModelManager(app, idle)
    for name in app.models:
        models.used(name, None)
    return MemoryManager(app, models, EvictionPolicy(app.chunk), spare), models


def evicted(app: FakeApp) -> list[tuple[object, ...]]:
    return [call[1:] for call in app.calls if call[0] == "evict"]


def recall(demand: int | None, *, gentle: bool = False, deadline: float = 100, reason: str = "") -> Recall:
    return Recall(serial=7, demand=demand, deadline=deadline, gentle=gentle, reason=reason)
