"""What a server of another user hears from a client: nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexserve.errors import PeerError
from flexserve.normal.address import Address
from flexserve.normal.client import Client
from flexserve.normal.peers import check_server, is_trusted, user_of_unix_peer
from flexserve.protocol.prompts import ChatMessage
from flexserve.protocol.sampling import Sampling

KEY, PROMPT = "sk-a-secret-key", "a very secret prompt"
NOBODY = 65534
# Another user's program, which says what it was sent. What it listens at was made for it.
LISTENER = """
import os, socket, sys
server = socket.socket(fileno=int(sys.argv[1]))
os.setresuid(65534, 65534, 65534)
listener = socket.socket(server.family, socket.SOCK_STREAM) if server.family != socket.AF_UNIX else server
if listener is not server:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    address = server.getsockname()
    server.close()
    listener.bind(address[:2])
listener.listen(8)
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    print(repr(connection.recv(65536)), flush=True)
"""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to start a program of another user")


@pytest.fixture(params=["127.0.0.1", "::1", "0.0.0.0", "unix"])
def stranger(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Address, subprocess.Popen[str]]]:
    if request.param == "unix":
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(tmp_path / "s"))
        address = Address("127.0.0.1", 1, tmp_path / "s", KEY)
    else:
        server = socket.socket(socket.AF_INET6 if ":" in request.param else socket.AF_INET)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((request.param, 0))
        address = Address(request.param, server.getsockname()[1], None, KEY)
    command = [sys.executable, "-c", LISTENER, str(server.fileno())]
    process = subprocess.Popen(command, pass_fds=[server.fileno()], stdout=subprocess.PIPE, text=True)
    server.close()
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield address, process
    process.kill()
    process.wait()


@pytest.mark.root
@as_root
def test_a_server_of_another_user_is_sent_neither_key_nor_prompt(
    stranger: tuple[Address, subprocess.Popen[str]],
) -> None:
    address, process = stranger
    with Client(address) as client:
        for ask in (client.health, lambda: list(client.ask("m", [ChatMessage("user", PROMPT)], Sampling()))):
            with pytest.raises(PeerError, match="another user") as caught:
                ask()
            assert caught.value.code == "server_of_another_user"
            assert process.stdout is not None
            assert process.stdout.readline() == "b''\n"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_server_of_this_user_is_known_before_it_accepts_and_after(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.create_server((host, 0), family=family)
    with server, socket.create_connection(server.getsockname()[:2]) as client:
        check_server(client)
        accepted, _ = server.accept()
        check_server(client)
        server.close()
        with accepted, pytest.raises(PeerError, match="cannot be told"):
            check_server(client)


def test_a_server_on_both_families_is_known_by_either() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, server.getsockname()[1])) as client:
                check_server(client)


def test_the_user_behind_a_unix_socket_is_known() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert user_of_unix_peer(ours) == os.geteuid()
        check_server(ours)
    assert is_trusted(os.geteuid())
    assert is_trusted(0)
    assert not is_trusted(NOBODY)
