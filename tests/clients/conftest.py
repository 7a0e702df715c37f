from __future__ import annotations

from collections.abc import Iterator

import pytest
from real_server import Server


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("clients"), platform=pytestconfig.getoption("platform"))
    yield server
    assert server.end() == 0
