"""The NPU as a process: what it is started with, and how it ends."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import subprocess
from collections.abc import Iterator

from boards import RAM

from flexserve.emulator import npu
from flexserve.platforms.trustzone import layout
from flexserve.testing.trustzone import eventually


@contextlib.contextmanager
def running(size: int = RAM) -> Iterator[tuple[subprocess.Popen[bytes], mmap.mmap]]:
    """A device on RAM that is shared with the test."""
    fd = os.memfd_create("ram")
    os.ftruncate(fd, RAM)
    words = npu.command(fd, size)
    with (
        subprocess.Popen(words, pass_fds=(fd,), stderr=subprocess.PIPE) as process,
        mmap.mmap(fd, RAM) as ram,
    ):
        os.close(fd)
        try:
            yield process, ram
        finally:
            process.kill()


def test_it_serves_its_registers_until_it_is_told_to_end_and_then_says_nothing() -> None:
    for kind in (signal.SIGTERM, signal.SIGINT):
        with running() as (process, ram):
            at = layout.npu_window_offset(RAM)
            assert eventually(lambda ram=ram, at=at: ram[at : at + 4] == b"UPNF", within=30)  # type: ignore[misc]
            reset = layout.npu_control_offset(RAM) + 8
            ram[reset] = 5
            assert eventually(lambda ram=ram, reset=reset: ram[reset + 4] == 5)  # type: ignore[misc]
            process.send_signal(kind)
            assert process.wait(30) == -kind
            assert process.stderr is not None
            assert process.stderr.read() == b""


def test_ram_that_is_not_as_large_as_was_said_is_refused_in_a_sentence() -> None:
    with running(2 * RAM) as (process, _):
        assert process.wait(30) == 1
        assert process.stderr is not None
        assert process.stderr.read().startswith(b"The machine's RAM cannot be mapped: ")
