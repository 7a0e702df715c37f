"""The guest's agent: a program in the guest that answers questions over a virtio port, line by line.

A question is a line of words; the answer is a line with one JSON object. The agent says a line of its
own accord once, when the guest is up. It belongs to the normal world: its answers are claims.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from flexserve.errors import NormalWorldError

_MOST = 1 << 20  # bytes of an answer
_USUAL = 10.0  # seconds until an answer
_LOOK = 0.2  # seconds between looks whether the machine still lives


class Agent:
    """The host's end of the port. Thread-safe: one question at a time."""

    def __init__(self, port: socket.socket) -> None:
        self._port = port
        self._poll = select.poll()
        self._poll.register(port, select.POLLIN)
        self._asking = threading.Lock()
        self._buffer = bytearray()

    def wait_until_ready(self, seconds: float, *, alive: Callable[[], bool]) -> None:
        """Wait for the guest to be up. Raises NormalWorldError when it is not within `seconds`."""
        self._line(time.monotonic() + seconds, alive)

    def ask(self, *words: str, seconds: float = _USUAL) -> dict[str, Any]:
        """Return the answer to a question. Raises NormalWorldError when there is none, or a refusal."""
        with self._asking:
            self._buffer.clear()
            try:
                self._port.sendall(" ".join(words).encode() + b"\n")
            except OSError as error:
                raise _silent(f"the machine is gone ({error.strerror})") from None
            line = self._line(time.monotonic() + seconds)
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            raise _silent("it answers nonsense") from None
        if not isinstance(answer, dict):
            raise _silent("it answers nonsense")
        if "error" in answer:
            raise NormalWorldError(
                f"The guest cannot do {words[0]!r}: {str(answer['error'])[:200]}.", code="guest_refused"
            )
        return answer

    def _line(self, deadline: float, alive: Callable[[], bool] = lambda: True) -> bytes:
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise _silent("it does not answer in time")
            if not self._poll.poll(min(left, _LOOK) * 1000):
                if not alive():
                    raise _silent("the machine is gone")
                continue
            self._buffer += self._received()
            if len(self._buffer) > _MOST:
                raise _silent("its answer has no end")
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer[:] = rest
        return line

    def _received(self) -> bytes:
        try:
            data = self._port.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            raise _silent("the machine is gone")
        return data


def _silent(why: str) -> NormalWorldError:
    return NormalWorldError(
        f"The guest's agent is of no help: {why}.", hint="Restart the machine.", code="guest_silent"
    )
