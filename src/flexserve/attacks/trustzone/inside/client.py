"""A client of the driven application, elsewhere: it verifies who answers, and seals its request."""

from __future__ import annotations

import hashlib
import secrets
import time

from flexserve.attacks.target import MODEL
from flexserve.attacks.trustzone.inside.driver import Driver
from flexserve.attestation.layers import Layer, Mode, certificate, chain_of, key_of
from flexserve.attestation.measurement import world_digest
from flexserve.attestation.policy import Policy
from flexserve.attestation.verification import verify
from flexserve.protocol.answers import Delta
from flexserve.protocol.rendered import Rendered
from flexserve.protocol.sealed_exchange import Exchange

MEASURED = {"application": hashlib.sha512(b"as it was built").digest()}  # as `driving` says it
_TOKENS = 24


class Client:
    """Asks through a driver, which passes bytes on. `root`: the secret that the application has."""

    def __init__(self, driver: Driver, root: bytes) -> None:
        self._driver, self._chain = driver, _certified(root)

    def ask(self, words: str) -> str:
        """Return the answer to a sealed request. Raises FlexServeError when it cannot be believed."""
        exchange = self.request(words)
        wire = bytes.fromhex(self._driver.say(f"sealed {exchange.body.hex()}"))
        said = list(exchange.feed(wire))
        exchange.end()
        return "".join(message.text for message in said if isinstance(message, Delta))

    def request(self, words: str) -> Exchange:
        """Return a sealed request that was not sent yet. Raises FlexServeError for who cannot be believed."""
        nonce = secrets.token_bytes(32)
        token = bytes.fromhex(self._driver.say(f"attest {nonce.hex()}"))
        verified = verify(self._chain, token, nonce, Policy(emulated="allow"))
        return Exchange(
            Rendered(MODEL, (words,), b"", _TOKENS),
            secrets.token_bytes(32),
            verified.sealing.public,
            hashlib.sha256(token).digest(),
            int(1000 * time.time()),
        )


def _certified(root: bytes) -> list[bytes]:
    """Return a chain whose last key is of `root`: a boot ROM's, a secure OS's, and the application's."""
    below = Layer(bytes(64), mode=Mode.DEBUG, code_descriptor=b"secure-os")
    layer = Layer(world_digest(MEASURED), mode=Mode.DEBUG, code_descriptor=b"application")
    chain, cdi = chain_of(hashlib.sha256(b"a boot ROM").digest(), [below])
    return [*chain, certificate(key_of(cdi), layer, key_of(root).public_key())]
