from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from scheduled import Server

from flexserve.testing.fake_app import CHUNK, FakeApp, FakeModel


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(app: FakeApp | None = None, **how: int) -> Server:
        servers.append(Server(app or FakeApp(a=FakeModel(4 * CHUNK), b=FakeModel(4 * CHUNK)), **how))
        return servers[-1]

    yield start
    for server in servers:
        server.scheduler.drain(5)
