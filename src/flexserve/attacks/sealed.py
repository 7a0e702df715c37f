"""A relay that was taken over, against sealed requests: it keeps, changes and repeats what it passes on.

The control of each attack is the same request without it, which has to be answered.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any, Protocol

from flexserve.attacks.attempt import Gained, Pointless
from flexserve.attacks.target import MODEL
from flexserve.attestation.policy import Policy
from flexserve.attestation.verification import verify
from flexserve.errors import CallerError, PeerError
from flexserve.protocol.answers import Finished
from flexserve.protocol.evidence import Attested
from flexserve.protocol.prompts import TextPrompt
from flexserve.protocol.requests import Generate
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.sealed_answer import SERVER_NONCE, SMALL
from flexserve.protocol.sealed_exchange import Exchange, named_secret
from flexserve.protocol.sealed_request import Header, header_of

_CANARY = "Nobody between may read of the canary in the coal mine, nor of its song. " * 3


class World(Protocol):
    """A secure world, as a relay has it."""

    def attest(self, nonce: bytes) -> Attested:
        """Return who it says that it is."""

    def sealed(self, body: bytes) -> list[bytes]:
        """Return the sealed answer to a sealed request. Raises CallerError when it refuses."""


class Attacked(Protocol):
    """A scene with a secure world that answers sealed requests."""

    @property
    def secret(self) -> Any:
        """The `World` under attack."""


def read_a_sealed_request(scene: Attacked) -> str:
    """Find a client's words, or the answer's, in what is passed on."""
    exchange, wire = _passed(scene)
    said = "".join(getattr(message, "text", "") for message in exchange.feed(wire))
    words = (_CANARY.encode(), _CANARY[:16].encode(), said.encode())
    if any(word and word in exchange.body + wire for word in words):
        raise Gained("the relay has read it")
    return "neither is there"


def send_a_request_again(scene: Attacked) -> str:
    """Have a client's request answered a second time."""
    exchange, _ = _passed(scene)
    return _refused(scene, exchange.body)


def send_a_request_again_whose_secret_was_named(scene: Attacked) -> str:
    """Have a request answered a second time that needed no key agreement."""
    first, _ = _passed(scene)
    second = _exchange(scene, named=first)
    _answered(scene, second)
    return _refused(scene, second.body)


def change_the_model(scene: Attacked) -> str:
    """Have another model asked than the client did."""
    body = _exchange(scene).body
    _answered(scene, _exchange(scene))
    header = header_of(body)
    other = Header(header.token_hash, "x" * len(header.model))
    return _refused(scene, other.encoded() + body[len(header.encoded()) :])


def cut_an_answer_off(scene: Attacked) -> str:
    """Keep the end of an answer from the client, who is to believe that this is all."""
    return _noticed(scene, lambda frames: frames[:-1])


def reorder_an_answer(scene: Attacked) -> str:
    """Exchange two pieces of an answer."""
    return _noticed(scene, lambda frames: [frames[1], frames[0], *frames[2:]])


def repeat_a_piece(scene: Attacked) -> str:
    """Have the client read a piece of an answer twice."""
    return _noticed(scene, lambda frames: [frames[0], *frames])


def answer_with_another_answer(scene: Attacked) -> str:
    """Answer a question with the answer to one before it."""
    _, kept = _passed(scene)
    exchange, _ = _passed(scene)
    return _unbelieved(exchange, kept)


def merge_two_owners(scene: Attacked) -> str:
    """Have one client's request find the KV of another one's, whose words it would confirm."""
    owner, other = secrets.token_bytes(32), secrets.token_bytes(32)
    _cached(scene, owner)
    if not _cached(scene, owner):
        raise Pointless("not even the same owner finds its KV again")
    if found := _cached(scene, other):
        raise Gained(f"another owner found {found} tokens")
    return "another owner finds none"


ATTACKS = (
    read_a_sealed_request,
    send_a_request_again,
    send_a_request_again_whose_secret_was_named,
    change_the_model,
    cut_an_answer_off,
    reorder_an_answer,
    repeat_a_piece,
    answer_with_another_answer,
    merge_two_owners,
)


# ---- the client ----------------------------------------------------------------------------------


def _exchange(scene: Attacked, owner: bytes = bytes(32), named: Exchange | None = None) -> Exchange:
    """Return a request, sealed to the world that its client verified, or by what `named` brought for it."""
    nonce = secrets.token_bytes(32)
    said = scene.secret.attest(nonce)
    sealing = verify(said.chain, said.token, nonce, Policy(emulated="allow")).sealing
    asked = Generate(0, MODEL, TextPrompt(_CANARY), Sampling(max_tokens=4, temperature=0))
    secret = named_secret(named.next, MODEL, bytes(32)) if named is not None else None
    now = time.time_ns() // 1_000_000
    return Exchange(asked, owner, sealing.public, bytes(32), now, secret=secret)


def _passed(scene: Attacked) -> tuple[Exchange, bytes]:
    """Return a request and its answer, as the relay passed them on."""
    exchange = _exchange(scene)
    return exchange, b"".join(scene.secret.sealed(exchange.body))


def _answered(scene: Attacked, exchange: Exchange) -> list[Any]:
    """Return the answer to a request that nobody attacks."""
    try:
        messages = exchange.feed(b"".join(scene.secret.sealed(exchange.body)))
        exchange.end()
    except (CallerError, PeerError) as error:
        raise Pointless(f"not even an honest relay's request is answered: {error}") from error
    return messages


def _cached(scene: Attacked, owner: bytes) -> int:
    """Return how many tokens of the same prompt a client found computed."""
    (end,) = (m for m in _answered(scene, _exchange(scene, owner)) if isinstance(m, Finished))
    return end.usage.cached_tokens


def _refused(scene: Attacked, body: bytes) -> str:
    try:
        scene.secret.sealed(body)
    except CallerError as error:
        return f"the secure world refuses it ({error.code})"
    raise Gained("the secure world answered it")


def _noticed(scene: Attacked, change: Callable[[list[bytes]], list[bytes]]) -> str:
    """Change the frames of an answer; return how the client notices."""
    _answered(scene, _exchange(scene))
    exchange, wire = _passed(scene)
    nonce, rest = wire[:SERVER_NONCE], wire[SERVER_NONCE:]
    frames = [rest[start : start + SMALL] for start in range(0, len(rest), SMALL)]
    return _unbelieved(exchange, nonce + b"".join(change(frames)))


def _unbelieved(exchange: Exchange, wire: bytes) -> str:
    try:
        exchange.feed(wire)
        exchange.end()
    except PeerError as error:
        return f"the client notices ({error.code})"
    raise Gained("the client took it for the answer")
