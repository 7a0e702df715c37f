"""Asks the application who it is, for clients of the normal world that want to know.

The chain and what is measured of the application come from whoever started the machine. They are no secret,
and nobody needs to believe this process: a token that they do not fit to is refused by its reader.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec

from flexserve.errors import FlexServeError, NormalWorldError
from flexserve.protocol.evidence import Attest, Attested
from flexserve.serving.attestations import Attestations
from flexserve.tee_client.files import SealedFiles
from flexserve.tee_client.sealed import SealedRequests

_IDENTITY = msgspec.msgpack.Decoder(tuple[list[bytes], bytes])


class Witness:
    """Answers each Attest (serving.attestations).

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
        self._requests, self._files = requests, files
        self._chain, self._measurements = _IDENTITY.decode(identity) if identity else ([], b"")
        self.ask = Attestations(self._attested, send).ask

    def _attested(self, message: Attest) -> Attested:
        if not self._chain:
            raise NormalWorldError(
                "Nobody has certified the application of this machine.",
                hint="Start it by `flexserve serve`.",
                code="not_certified",
            )
        self._requests.forget_removed(self._files)
        for manifest in self._files.manifests():
            with contextlib.suppress(FlexServeError):  # those that it cannot open are in no token
                self._requests.opened(self._files, manifest.name).close()
        return Attested(message.serial, self._chain, self._requests.attest(message.nonce, self._measurements))
