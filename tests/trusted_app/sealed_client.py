"""A client of the trusted application: it verifies a token, seals requests, and opens their answers."""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Any

import cbor2
from inner_application import ROOT, Application
from inner_models import Opened

from flexserve.attestation.layers import Layer, Mode, certificate, chain_of, key_of
from flexserve.attestation.measurement import world_digest
from flexserve.attestation.policy import Policy
from flexserve.attestation.verification import Verified, verify
from flexserve.protocol.rendered import Rendered
from flexserve.protocol.sealed_exchange import Exchange, named_secret, seal, sealed_secret
from flexserve.protocol.sealed_request import Content
from flexserve.tee_client.messages import Ask, Finish, Reply, progress
from flexserve.tee_client.sealed import SealedRequests, Unsealed

MEASUREMENTS = {"application": hashlib.sha512(b"an application").digest()}
BOOT_ROM = hashlib.sha256(b"a boot ROM").digest()
QUESTION = ("<|im_start|>user\n", "What is Flex-Mem?", "<|im_end|>\n<|im_start|>assistant\n")


def certified() -> list[bytes]:
    """Return the chain of an application whose secret is ROOT: a layer below it certifies its key."""
    below = Layer(bytes(64), mode=Mode.DEBUG, code_descriptor=b"secure-os")
    layer = Layer(world_digest(MEASUREMENTS), mode=Mode.DEBUG, code_descriptor=b"application")
    chain, cdi = chain_of(BOOT_ROM, [below])
    return [*chain, certificate(key_of(cdi), layer, key_of(ROOT).public_key())]


class Client:
    """Verifies an application when it is made."""

    def __init__(self, app: Application) -> None:
        self._link = app.link
        self.requests = SealedRequests(app.link)
        self.nonce = secrets.token_bytes(32)
        self.token = self.requests.attest(self.nonce, cbor2.dumps(MEASUREMENTS))
        self.policy = Policy(emulated="allow")
        self.verified: Verified = verify(certified(), self.token, self.nonce, self.policy)
        self.owner = secrets.token_bytes(32)

    def exchange(
        self, asked: Rendered, *, following: Exchange | None = None, now: float | None = None
    ) -> Exchange:
        """Return a sealed request; `following`: with the secret that an earlier one brought."""
        token = hashlib.sha256(self.token).digest()
        secret = None if following is None else named_secret(following.next, asked.model, token)
        moment = int(1000 * (time.time() if now is None else now))
        return Exchange(asked, self.owner, self.verified.sealing.public, token, moment, secret=secret)

    def sealed(self, asked: bytes) -> bytes:
        """Return a request that asks these bytes of the model, whatever they are."""
        token = hashlib.sha256(self.token).digest()
        secret = sealed_secret("tiny", self.verified.sealing.public, token)
        moment = int(1000 * time.time())
        return seal(Content(secrets.token_bytes(16), moment, self.owner, asked, bytes(32)), secret)

    def unsealed(self, body: bytes) -> Reply:
        """Return what the application says of a request."""
        return self._link.ask(Ask.UNSEAL, 0, payload=body)

    def messages(self, exchange: Exchange, *parts: bytes) -> list[Any]:
        """Return what an answer says; it has to be whole."""
        said = [message for part in parts for message in exchange.feed(part)]
        exchange.end()
        return said


def asked(*parts: str, model: str = "tiny", most: int = 12, **fields: Any) -> Rendered:
    """Return a request, for the likeliest tokens."""
    return Rendered(model, parts or QUESTION, b"", most, **fields)


def frames(model: Opened, requests: SealedRequests, opened: Unsealed, *, sequence: int = 0) -> list[bytes]:
    """Return the answer to a request as the normal world has it: a frame for each step, then the end."""
    requests.begin(model.number, sequence, opened.session)
    said = [opened.begin]
    finished = Finish.NO
    while finished is Finish.NO:
        payload = sequence.to_bytes(4, "little")
        [state] = progress(model.app.do(Ask.STEP, model.number, 64, payload=payload))
        finished = state.finished
        said.append(requests.frame(opened.session))
    said.append(requests.finish(opened.session))
    model.do(Ask.END, sequence)
    return said
