from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from real_server import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("conformance"))
    yield server
    assert server.end() == 0


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.openai() as client:
        yield client
