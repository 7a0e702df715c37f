"""The guest's disk as a program of the guest uses it: by commands to its driver, and that one's buffer.

On a board the client would be such a program. Here it is a process of the host. Its line goes to a program
of the guest that only passes commands on (driver/guest/disk.c), and the buffer is mapped, as the ring is.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

from flexserve.errors import NormalWorldError
from flexserve.platforms.trustzone.agent import Agent

_PATIENCE = 90.0  # seconds: the driver gives a disk up sooner
_GIVEN_UP = "timed out"  # the guest's words


class GuestDisk:
    """A disk.Guest over a `line`. Thread-safe: one command at a time.

    A disk that the driver gives up stays so until the guest boots again. So `end` is called, with the reason.
    """

    def __init__(self, line: socket.socket, buffer: memoryview, end: Callable[[str], object]) -> None:
        self._agent, self.buffer, self._end = Agent(line), buffer, end

    def disk(self, *words: str) -> Mapping[str, object]:
        """Have the driver carry a command out. Raises NormalWorldError, when it refuses: "guest_refused"."""
        try:
            return self._agent.ask(*words, seconds=_PATIENCE)
        except NormalWorldError as error:
            if error.code != "guest_refused" or _GIVEN_UP in error.message:
                self._end(f"the disk of the machine does not answer: {error.message}")
            raise
