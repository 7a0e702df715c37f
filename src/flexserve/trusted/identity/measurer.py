"""A process that measures what the secure world consists of, once, when somebody wants to know.

It is forked before its parent has the key, and keeps its own view of the file system. It waits, since reading
some ten thousand files takes a second, for which no start is to wait; and it ends when it has answered.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import msgspec

from flexserve import interpreter
from flexserve.attestation.measurement import Measurement, configuration, measure
from flexserve.errors import NormalWorldError
from flexserve.platforms.linux.hardening import die_with_parent
from flexserve.platforms.linux.sandbox import keep_mounts


class Measurer:
    """The process's other end."""

    def __init__(self) -> None:
        """Fork it. From a process of one thread."""
        self._socket, theirs = socket.socketpair()
        if os.fork() == 0:
            try:
                self._socket.close()
                _serve(theirs)
            finally:
                os._exit(0)
        theirs.close()

    def measure(self) -> Measurement:
        """Return what it found. Raises NormalWorldError when it could not read a file."""
        self._socket.sendall(b"1")
        self._socket.shutdown(socket.SHUT_WR)
        said = b"".join(iter(lambda: self._socket.recv(1 << 16), b""))
        self._socket.close()
        if not said:
            raise NormalWorldError(
                "What the secure world consists of cannot be read.",
                hint="Restart the server.",
                code="not_measured",
            )
        return msgspec.msgpack.decode(said, type=Measurement)


def program_of(pid: int) -> dict[str, str]:
    """Return how the process `pid` runs: its interpreter with its options, and its program without them."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        words = []
    return configuration(words[1 : len(interpreter.OPTIONS) + 2])


def start_of(pid: int) -> float:
    """Return when the process `pid` started, in seconds since 1970. Raises OSError."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    up = time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time() - (up - ticks / os.sysconf("SC_CLK_TCK"))


def _serve(connection: socket.socket) -> None:
    die_with_parent(signal.SIGKILL)
    keep_mounts()
    if connection.recv(1):
        connection.sendall(msgspec.msgpack.encode(measure()))
