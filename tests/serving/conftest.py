from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from scheduled import Server
from sharing import Clock

from flexserve.serving import memory_manager, model_manager
from flexserve.testing.fake_app import CHUNK, FakeApp, FakeModel


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (memory_manager, model_manager):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(app: FakeApp | None = None, **how: int) -> Server:
        servers.append(Server(app or FakeApp(a=FakeModel(4 * CHUNK), b=FakeModel(4 * CHUNK)), **how))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
