"""SIGHUP: keys and configuration are read again, while requests run; a closed terminal ends the server."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import pty
import signal
import socket
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import Server, ask, until
from structlog.testing import capture_logs

from flexserve.errors import CallerError
from flexserve.normal import service_manager
from flexserve.normal.api.admission import Admission
from flexserve.normal.api.keys import Key, Keys
from flexserve.normal.main import ServeOptions
from flexserve.normal.reloading import Reloading
from flexserve.normal.world import World
from flexserve.protocol.launch import SecureOptions
from flexserve.units import GIB

pytestmark = pytest.mark.anyio
BEFORE = ServeOptions(SecureOptions(store=Path("/none"), device_key=Path("/none")))
KEY = Key.of("mine", "sk-of-mine")


def admission_of(options: ServeOptions) -> Admission:
    return Admission(keys=Keys(options.api_keys))


def reloading(world: World, admission: Admission, now: Any) -> Reloading:
    return Reloading(dataclasses.replace(BEFORE, reread=now), world, admission, admission_of)


async def test_what_can_change_does_and_the_rest_is_named(world: World) -> None:
    new = dataclasses.replace(
        BEFORE,
        secure=SecureOptions(store=Path("/none"), device_key=Path("/none"), threads=3),
        api_keys=[KEY],
        max_memory=GIB,
        port=8080,
    )
    admission = Admission()
    again = reloading(world, admission, lambda: new)
    with capture_logs() as lines:
        again.reload()
        again.reload()
    assert admission.keys.find(b"sk-of-mine") == KEY
    assert world.cap == GIB
    line, second = [each for each in lines if each["event"] == "reloaded"]
    assert line["changed"] == ["api_keys", "max_memory"]
    assert line["needs_restart"] == ["port", "threads"]
    assert "sk-" not in str(line)
    assert (second["changed"], second["needs_restart"]) == ([], ["port", "threads"])


async def test_a_limit_that_a_person_set_meanwhile_stays_where_the_configuration_does(world: World) -> None:
    again = reloading(world, Admission(), lambda: BEFORE)
    world.set_cap(GIB)
    again.reload()
    assert world.cap == GIB


async def test_a_configuration_that_cannot_be_used_changes_nothing_and_is_logged(world: World) -> None:
    def bad() -> ServeOptions:
        raise CallerError("The port is no number.", hint="Correct it.")

    admission = Admission(keys=Keys([KEY]))
    with capture_logs() as lines:
        reloading(world, admission, bad).reload()
    assert admission.keys.find(b"sk-of-mine") == KEY
    (line,) = lines
    assert (line["event"], "no number" in line["reason"]) == ("not_reloaded", True)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    master, terminal = pty.openpty()

    def lead_the_terminal() -> None:
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    server = Server(tmp_path, stdin=terminal, preexec_fn=lead_the_terminal)
    os.close(terminal)
    server.terminal = master
    yield server
    server.process.kill()
    server.process.wait()
    if server.terminal >= 0:
        os.close(server.terminal)


def test_hangup_reads_keys_again_and_a_closed_terminal_lets_what_runs_finish(
    server: Server, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sk-of-mine\n")
    keys.chmod(0o600)
    client = httpx.Client(base_url=server.url, headers={"Authorization": "Bearer sk-of-mine"})
    with client.stream(
        "POST", "/v1/chat/completions", json={"model": "steady", "messages": ask(), "stream": True}
    ) as stream:
        lines = stream.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: '"event": "reloaded"' in server.log())
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        assert client.get("/v1/models").status_code == 200
        os.close(server.terminal)
        server.terminal = -1
        assert list(lines)[-2] == "data: [DONE]"
    assert server.process.wait(60) == 0


def test_the_service_manager_is_told_and_without_one_nobody_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    service_manager.tell("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        service_manager.tell_reloading()
        service_manager.tell("READY=1")
        reloading, ready = manager.recv(100), manager.recv(100)
    assert reloading.startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    assert ready == b"READY=1"
    service_manager.tell("READY=1")  # the manager is gone: that ends nothing
