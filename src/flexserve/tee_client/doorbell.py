"""The line to who plays the hardware: it has the application's CPUs lent, and says when that has ended."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from flexserve.errors import NormalWorldError
from flexserve.protocol.launch import MODELS_NOT_READY, MODELS_READY, NEW_MODELS, SOMETHING_SAID

_MOST = 4096  # bytes of a reason
_PATIENCE = 150.0  # seconds: who makes models ready gives up sooner
_ANSWERS = MODELS_READY + MODELS_NOT_READY


class Doorbell:
    """The client's end of emulator.inner_core.Bell. Thread-safe."""

    def __init__(self, line: socket.socket, end: Callable[[str], None], gone: Callable[[], None]) -> None:
        """`end` is called with the reason when the application has ended, `gone` when the machine has."""
        self._line, self._end, self._gone = line, end, gone
        self._changed = threading.Condition()  # guards what follows
        self._wanted = 0  # how often models were
        self._answers = bytearray()  # to that, one byte to each
        self._over = False  # nobody answers any more
        threading.Thread(target=self._listen, name="doorbell", daemon=True).start()

    def ring(self) -> None:
        """Say that something was said. Always safe."""
        try:
            self._line.send(SOMETHING_SAID, socket.MSG_DONTWAIT)
        except OSError:  # it rings still, or is gone, which `gone` hears of
            return

    def make_models_ready(self) -> None:
        """Have models made ready that the store got meanwhile, as far as they can be, and wait for that.

        Raises NormalWorldError when it fails, or takes minutes.
        """
        with self._changed:
            number, self._wanted = self._wanted, self._wanted + 1
            with contextlib.suppress(OSError):  # it is gone, which `gone` hears of
                self._line.send(NEW_MODELS)
            self._changed.wait_for(lambda: self._over or len(self._answers) > number, _PATIENCE)
            if self._answers[number : number + 1] != MODELS_READY:
                raise NormalWorldError(
                    "The machine did not make the store's new models ready for its secure world.",
                    hint="Try again. If that does not help, restart flexserve: its log says why.",
                    code="models_not_ready",
                )

    def _listen(self) -> None:
        said = b""
        try:
            while len(said) < _MOST and (part := self._line.recv(_MOST)):
                said += part.translate(None, _ANSWERS)
                with self._changed:
                    self._answers += bytes(byte for byte in part if byte in _ANSWERS)
                    self._changed.notify_all()
        except OSError:
            pass
        with self._changed:
            self._over = True
            self._changed.notify_all()
        if said:
            self._end(said.decode(errors="replace"))
        else:
            self._gone()
