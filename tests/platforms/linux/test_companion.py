"""A companion keeps debuggers away from a program, and is otherwise not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexserve.platforms.linux import companion, kernel_views
from flexserve.platforms.linux.attack_vectors import Vector, assess, parent_of

SAYS_WHO_IT_IS = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)"


def run(program: str) -> subprocess.CompletedProcess[str]:
    command = companion.command([sys.executable, "-I", "-c", program])
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def guarded() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A companion, and the pid of its program."""
    command = companion.command([sys.executable, "-I", "-c", SAYS_WHO_IT_IS])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.kill()


def gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


@pytest.mark.parametrize("status", [0, 3])
def test_it_ends_as_the_program_ends(status: int):
    assert run(f"import os; os._exit({status})").returncode == status


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV, signal.SIGKILL])
def test_it_ends_of_the_signal_that_ended_the_program(number: signal.Signals):
    assert run(f"import os; os.kill(os.getpid(), {number:d})").returncode == -number


def test_signals_go_on_to_the_program(guarded: tuple[subprocess.Popen[str], int]):
    process, _ = guarded
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM


def test_a_program_with_many_threads_runs_as_ever():
    program = (
        "import threading\n"
        "threads = [threading.Thread(target=sum, args=(range(1000),)) for _ in range(200)]\n"
        "for each in threads: each.start()\n"
        "for each in threads: each.join()\n"
        "print('all')"
    )
    assert run(program).stdout == "all\n"


def test_nobody_attaches_to_the_program_nor_to_the_companion(guarded: tuple[subprocess.Popen[str], int]):
    process, program = guarded
    if assess(program)[Vector.ATTACH].open:
        pytest.skip("this kernel refuses the companion")
    assert parent_of(program) == process.pid
    for pid in (program, process.pid):
        with pytest.raises(PermissionError):
            kernel_views.peek(pid, 0)


def test_the_program_does_not_outlive_its_companion(guarded: tuple[subprocess.Popen[str], int]):
    process, program = guarded
    process.kill()
    process.wait(30)
    deadline = 300
    while not gone(program) and deadline:
        deadline -= 1
        signal.sigtimedwait([], 0.1)
    assert gone(program)


def test_an_unguarded_process_can_be_attached_to():
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        try:
            assert not assess(process.pid)[Vector.ATTACH].closed_by or os.geteuid() != 0
        finally:
            process.kill()
