from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest
from real_server import KEY, Connected, Server


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("conformance"), platform=pytestconfig.getoption("platform"))
    yield server
    assert server.end() == 0


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.openai() as client:
        yield client


@pytest.fixture(scope="session")
def attested(server: Server) -> None:
    """Skip what needs a server that can be attested, where it says by name that it cannot be."""
    headers, nonce = {"Authorization": f"Bearer {KEY}"}, {"nonce": "00" * 32}
    answer = httpx.get(f"{server.url}/v1/attestation", params=nonce, headers=headers, timeout=60)
    if answer.is_error and answer.json()["error"]["code"] == "not_inside":
        pytest.skip(answer.json()["error"]["message"])


@pytest.fixture(scope="session")
def connected(
    server: Server, attested: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Connected]:
    connected = Connected(server, tmp_path_factory.mktemp("connected"))
    yield connected
    assert connected.end() == 0


@pytest.fixture
def serve(server: Server) -> Iterator[Callable[[Path, str], str]]:
    """Have the server serve a GGUF file under a name while a test runs; the name is returned."""
    added = []

    def add(path: Path, name: str) -> str:
        server.store.add(path, name, lambda _done, _total: None)
        added.append(name)
        return name

    yield add
    for name in added:
        server.store.remove(name)
