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


def manager(app: FakeApp, policy: EvictionPolicy | None = None) -> MemoryManager:
    """A memory manager of models that were used one after the other."""
    models = ModelManager(app, idle=3600)
    for name in app.models:
        models.used(name, None)
        time.sleep(0.001)
    return MemoryManager(app, models, policy)


def evicted(app: FakeApp) -> list[tuple[object, ...]]:
    return [call[1:] for call in app.calls if call[0] == "evict"]


def recall(demand: int | None, *, gentle: bool = False, deadline: float = 100, reason: str = "") -> Recall:
    return Recall(serial=7, demand=demand, deadline=deadline, gentle=gentle, reason=reason)
