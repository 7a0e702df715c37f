"""Asks the application who it is, for clients of the normal world that want to know.

The chain and what is measured of the application come from whoever started the machine. They are no secret,
and nobody needs to believe this process: a token that they do not fit to is refused by its reader.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable

import msgspec

from flexserve.errors import FlexServeError, NormalWorldError, QueueFullError
from flexserve.protocol.evidence import Attest, Attested
from flexserve.protocol.failures import failure_of
from flexserve.tee_client.files import SealedFiles
from flexserve.tee_client.sealed import SealedRequests

_MOST_WAITING = 64
_IDENTITY = msgspec.msgpack.Decoder(tuple[list[bytes], bytes])


class Witness:
    """Answers each Attest, one after the other, in a thread of its own.

    `identity`: a chain, and what its last certificate is about, as emulator.fuses has them; empty: there are
    none. `send` sends to the normal world.
    """

    def __init__(
        self,
        requests: SealedRequests,
        files: SealedFiles,
        identity: bytes,
        send: Callable[[msgspec.Struct], None],
    ) -> None:
        self._requests, self._files, self._send = requests, files, send
        self._chain, self._measurements = _IDENTITY.decode(identity) if identity else ([], b"")
        self._waiting: queue.Queue[Attest] = queue.Queue(_MOST_WAITING)
        threading.Thread(target=self._work, name="witness", daemon=True).start()

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
                self._send(self._attested(message))
            except FlexServeError as error:
                self._refuse(message, error)

    def _attested(self, message: Attest) -> Attested:
        if not self._chain:
            raise NormalWorldError(
                "Nobody has certified the application of this machine.",
                hint="Start it by `flexserve serve`.",
                code="not_certified",
            )
        for manifest in self._files.manifests():
            with contextlib.suppress(FlexServeError):  # those that it cannot open are in no token
                self._requests.opened(self._files, manifest.name).close()
        return Attested(message.serial, self._chain, self._requests.attest(message.nonce, self._measurements))

    def _refuse(self, message: Attest, error: FlexServeError) -> None:
        self._send(Attested(message.serial, [], b"", failure_of(error)))
