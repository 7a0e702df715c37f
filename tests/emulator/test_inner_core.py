"""The secure core of a machine whose secure world is inside, with machines that are told what to answer."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from flexserve.emulator import inner_core
from flexserve.emulator.inner_core import InnerCore
from flexserve.errors import NormalWorldError
from flexserve.protocol.launch import (
    MODELS_NOT_READY,
    MODELS_READY,
    NEW_MODELS,
    SOMETHING_SAID,
    TEE_CLIENT,
    SecureOptions,
)


class PlayedMachine:
    """A machine that boots at once; `ended`: its application has."""

    def __init__(self) -> None:
        self.ram_fd, self.firmware = 0, SimpleNamespace(digest=b"d", authority=b"a")
        self.cpus, self.provisioned = 2, SimpleNamespace(identity=b"chain")
        self.provided = threading.Semaphore(0)
        self.said, self.closed = threading.Semaphore(0), False
        self.ended, self.gone, self.refuses = False, False, False
        self.agent = self
        self.booted_by: threading.Thread | None = None
        self.disk_line, self.disk_end = socket.socketpair()
        self.has_disk = True

    def ask(self, *words: str, seconds: float = 10.0) -> dict[str, Any]:
        del seconds
        if self.gone:
            raise NormalWorldError("The guest's agent is of no help: the machine is gone.")
        if words[0] == "write":
            self.said.release()
        return {"ended": int(self.ended), "total": 5, "available": 3, "free": 1, "flexmem": 2}

    def provide_models(self) -> None:
        if self.refuses:
            raise NormalWorldError("The firmware was replaced after it was started.")
        self.provided.release()

    def console(self) -> list[str]:
        return ["", "secure world: the application faulted, class 24"]

    def __enter__(self) -> Self:
        self.booted_by = threading.current_thread()
        return self

    def give_up(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.closed = True


class SlowMachine(PlayedMachine):
    """One that does not come up before it is given up."""

    def __init__(self) -> None:
        super().__init__()
        self.boots, self.given_up = threading.Event(), threading.Event()

    def __enter__(self) -> Self:
        self.boots.set()
        assert self.given_up.wait(60)
        raise NormalWorldError("The machine did not boot.")

    def give_up(self) -> None:
        self.given_up.set()


@pytest.fixture
def machines() -> list[PlayedMachine]:
    return []


@pytest.fixture
def core(machines: list[PlayedMachine], monkeypatch: pytest.MonkeyPatch) -> Iterator[InnerCore]:
    monkeypatch.setattr(inner_core, "_LOOK", 0.01)

    def make() -> Any:
        machines.append(PlayedMachine())
        return machines[-1]

    with InnerCore(make) as core:
        yield core


def line_of(core: InnerCore) -> Any:
    """The client's end of the bell."""
    core.renew()
    return core._bell.line


def test_what_the_client_says_it_said_the_driver_is_told(
    core: InnerCore, machines: list[PlayedMachine]
) -> None:
    line_of(core).send(b"\1")
    assert machines[0].said.acquire(timeout=5)


def test_models_that_the_store_got_meanwhile_are_made_ready_when_the_client_wants_them(
    core: InnerCore, machines: list[PlayedMachine]
) -> None:
    line = line_of(core)
    line.send(NEW_MODELS)
    assert line.recv(16) == MODELS_READY
    assert machines[0].provided.acquire(blocking=False)
    line_of(core).send(SOMETHING_SAID)
    assert machines[1].said.acquire(timeout=5)
    assert not machines[1].provided.acquire(blocking=False)


def test_a_client_is_told_when_models_cannot_be_made_ready_and_may_want_them_again(
    core: InnerCore, machines: list[PlayedMachine], capsys: pytest.CaptureFixture[str]
) -> None:
    line = line_of(core)
    machines[0].refuses = True
    line.send(NEW_MODELS * 2)
    assert line.recv(1) + line.recv(1) == MODELS_NOT_READY * 2
    assert "The firmware was replaced" in capsys.readouterr().err
    machines[0].refuses = False
    line.send(NEW_MODELS)
    assert line.recv(16) == MODELS_READY


def test_a_client_is_told_that_its_application_has_ended_and_what_the_machine_said(
    core: InnerCore, machines: list[PlayedMachine]
) -> None:
    line = line_of(core)
    machines[0].ended = True
    said = b"".join(iter(lambda: line.recv(4096), b"")).decode()
    assert said == "the trusted application has ended: secure world: the application faulted, class 24"


def test_the_line_of_a_client_whose_machine_is_gone_breaks_off_and_the_log_says_why(
    core: InnerCore, machines: list[PlayedMachine], capsys: pytest.CaptureFixture[str]
) -> None:
    line = line_of(core)
    machines[0].gone = True
    assert b"".join(iter(lambda: line.recv(4096), b"")) == b""
    assert "the machine is gone" in capsys.readouterr().err


def test_the_next_client_gets_another_machine_started_by_a_thread_that_stays(
    core: InnerCore, machines: list[PlayedMachine]
) -> None:
    core.renew()
    assert len(machines) == 1
    core.renew()
    first, second = machines
    assert first.closed
    assert not second.closed
    assert first.booted_by is second.booted_by
    assert second.booted_by is not None
    assert second.booted_by.is_alive()
    assert core.memory().charged(0) == 2


def test_a_client_finds_the_ring_and_the_disk_and_gets_nothing_else(core: InnerCore) -> None:
    core.renew()
    options = core.secure_options(SecureOptions(Path(), Path()))
    assert core.program == TEE_CLIENT
    assert (options.ring_offset, options.ring_bytes) == (0, 512 << 10)
    assert (options.buffer_offset, options.buffer_bytes) == (512 << 10, 512 << 10)
    assert options.fds == (0, core._bell.line.fileno(), core.machine.disk_line.fileno())
    assert not options.npu_driver
    assert options.identity == b"chain"
    assert options.threads == 1, "the guest's kernel and its programs have the other CPU"


@pytest.mark.parametrize(
    ("cpus", "cores", "threads"), [(1, 2, 1), (2, 8, 1), (4, 8, 3), (4, 2, 1), (2, 1, 1)]
)
def test_what_else_runs_has_a_core_in_the_machine_and_on_the_host(
    monkeypatch: pytest.MonkeyPatch, cpus: int, cores: int, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(cores)))
    machine: Any = PlayedMachine()
    machine.cpus = cpus
    with InnerCore(lambda: machine) as core:
        core.renew()
        assert core.secure_options(SecureOptions(Path(), Path())).threads == threads
        assert core.secure_options(SecureOptions(Path(), Path(), threads=2)).threads == 2


def test_a_client_of_a_machine_without_a_disk_has_none(
    core: InnerCore, machines: list[PlayedMachine]
) -> None:
    core.renew()
    machines[0].has_disk = False
    assert core.secure_options(SecureOptions(Path(), Path())).disk_fd == -1


def test_the_last_machine_ends_with_it() -> None:
    machine: Any = PlayedMachine()
    with InnerCore(lambda: machine) as core:
        core.renew()
        assert not machine.closed
    assert machine.closed


def test_a_machine_that_still_boots_at_the_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inner_core, "_LOOK", 0.01)
    first, slow = PlayedMachine(), SlowMachine()
    made: Iterator[Any] = iter((first, slow))
    refused: list[NormalWorldError] = []

    def renew(core: InnerCore) -> None:
        try:
            core.renew()
        except NormalWorldError as error:
            refused.append(error)

    with InnerCore(lambda: next(made)) as core:
        core.renew()  # the first client has the first machine
        renewing = threading.Thread(target=renew, args=(core,))
        renewing.start()
        assert slow.boots.wait(60)
    renewing.join(60)
    assert first.closed
    assert [error.message for error in refused] == ["The machine did not boot."]
