"""Requests for attestation wait for their turn: signing a token takes a while, and other messages go on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import msgspec

from flexserve.errors import FlexServeError, QueueFullError
from flexserve.protocol.evidence import Attest, Attested
from flexserve.protocol.failures import failure_of

_MOST_WAITING = 64


class Attestations:
    """Answers each Attest, one after the other, in a thread of its own.

    `attest` returns the answer, or raises FlexServeError. `send` sends to the normal world.
    """

    def __init__(self, attest: Callable[[Attest], Attested], send: Callable[[msgspec.Struct], None]) -> None:
        self._attest, self._send = attest, send
        self._waiting: queue.Queue[Attest] = queue.Queue(_MOST_WAITING)
        threading.Thread(target=self._work, name="attestations", daemon=True).start()

    def ask(self, message: Attest) -> None:
        """Have `message` answered; at once, with a failure, when too many wait."""
        try:
            self._waiting.put_nowait(message)
        except queue.Full:
            self._refuse(message, QueueFullError("Too many ask for attestation.", hint="Retry in a moment."))

    def _work(self) -> None:
        while True:
            message = self._waiting.get()
            try:
                self._send(self._attest(message))
            except FlexServeError as error:
                self._refuse(message, error)

    def _refuse(self, message: Attest, error: FlexServeError) -> None:
        self._send(Attested(message.serial, [], b"", failure_of(error)))
