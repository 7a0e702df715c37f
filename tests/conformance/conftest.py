from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import openai
import pytest
from real_server import Connected, Server


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    """Skip what a secure world inside of the machine refuses by name to a client (docs/trustzone.md)."""
    try:
        yield
    except openai.APIStatusError as error:
        if error.code != "secure_world_inside":
            raise
        pytest.skip(error.message)


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
def connected(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connected]:
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
