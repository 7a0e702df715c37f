"""The line to who plays the hardware: it has the application's CPUs lent, and says when that has ended."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from flexserve.protocol.launch import NEW_MODELS, SOMETHING_SAID

_MOST = 4096  # bytes of a reason


class Doorbell:
    """The client's end of emulator.inner_core.Bell. Thread-safe."""

    def __init__(self, line: socket.socket, end: Callable[[str], None], gone: Callable[[], None]) -> None:
        """`end` is called with the reason when the application has ended, `gone` when the machine has."""
        self._line, self._end, self._gone = line, end, gone
        threading.Thread(target=self._listen, name="doorbell", daemon=True).start()

    def ring(self) -> None:
        """Say that something was said. Always safe."""
        try:
            self._line.send(SOMETHING_SAID, socket.MSG_DONTWAIT)
        except OSError:  # it rings still, or is gone, which `gone` hears of
            return

    def want_models(self) -> None:
        """Say that the store has models that the application cannot open yet. Always safe."""
        with contextlib.suppress(OSError):
            self._line.send(NEW_MODELS)

    def _listen(self) -> None:
        said = b""
        try:
            while len(said) < _MOST and (part := self._line.recv(_MOST)):
                said += part
        except OSError:
            pass
        if said:
            self._end(said.decode(errors="replace"))
        else:
            self._gone()
