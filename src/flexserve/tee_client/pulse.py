"""Signs of life of an application that computes: between two slices it answers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from flexserve.errors import FlexServeError
from flexserve.tee_client.application import Application
from flexserve.tee_client.messages import Ask

_PERIOD = 1.0  # seconds


class Pulse:
    """Asks for a sign of life now and then, while somebody waits for something long."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self._waiting = threading.Event()
        threading.Thread(target=self._work, name="pulse", daemon=True).start()

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Ask inside the block. Belongs to one thread."""
        self._waiting.set()
        try:
            yield
        finally:
            self._waiting.clear()

    def _work(self) -> None:
        pause = threading.Event()
        with contextlib.suppress(FlexServeError):  # who waits hears of it
            while True:
                self._waiting.wait()
                pause.wait(_PERIOD)
                if self._waiting.is_set():
                    self._app.ask(Ask.POOL)
