"""Hostile sealed requests: bodies that are changed, cut, joined or made up, each of which is refused alike.

    python -m flexserve.testing.sealed_fuzz --bodies 1000000

A world of the trusted side takes them in this process: what opens them is all that such a body reaches. Ends
with status 1 at the first one that is answered otherwise, having printed it in hex.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from flexserve.protocol.answers import Failed
from flexserve.protocol.failures import failure_of
from flexserve.protocol.messages import Query
from flexserve.protocol.prompts import ChatMessage, ChatPrompt
from flexserve.protocol.requests import Embed, Generate
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.sealed_exchange import seal, sealed_secret
from flexserve.protocol.sealed_messages import Sealed
from flexserve.protocol.sealed_request import CONTINUED, NAME, OVERHEAD, Content, header_of, refusal
from flexserve.testing.sealing_key import FixedKey
from flexserve.trusted.sessions.sessions import Sessions

NOW = 1_800_000_000_000
_KEY, _STRANGER = FixedKey(), FixedKey(bytes(range(1, 97)))
_REFUSED = failure_of(refusal())


def bodies(seed: int) -> Iterator[bytes]:
    """Yield hostile bodies for ever. None of them may be opened."""
    rng = random.Random(seed)  # noqa: S311
    good = [_sealed(asked, rng) for asked in _questions()]
    makers: list[Callable[[random.Random, bytes], bytes]] = [
        *(_flip, _flip, _flip, _cut, _extend, _join, _noise),
        *(_framed_noise, _continued_noise, _renamed, _misaddressed, _strange_content),
    ]
    while True:
        yield rng.choice(makers)(rng, rng.choice(good))


def count_refused(number: int, seed: int = 0, say: Callable[[int], None] = lambda _: None) -> int:
    """Have `number` bodies refused; return how many were. `say` hears of every thousandth.

    Raises AssertionError for one that is answered otherwise, with its bytes in hex.
    """
    sent: list[Any] = []
    sessions = Sessions(_KEY.unseal, sent.append, lambda: NOW, None)
    for count, body in zip(range(1, number + 1), bodies(seed), strict=False):
        assert sessions.open(Sealed(count, body)) is None, body.hex()
        assert not sent, body.hex()  # how long it took to see through it does not tell
        sessions.tick()
        assert sent == [Failed(count, _REFUSED)], body.hex()
        sent.clear()
        if count % 1000 == 0:
            say(count)
    return number


def _questions() -> list[Generate | Embed | Query]:
    return [
        Generate(0, "tiny", ChatPrompt([ChatMessage("user", "Where is the key?")]), Sampling()),
        Embed(0, "a model with a longer name", ["one", "two"]),
        Query(0),
    ]


def _sealed(asked: Any, rng: random.Random, model: str | None = None, now: int = NOW) -> bytes:
    content = Content(rng.randbytes(16), now, rng.randbytes(32), msgspec.msgpack.encode(asked))
    model = getattr(asked, "model", "") if model is None else model
    return seal(content, sealed_secret(model, _KEY.public, bytes(32)))


def _flip(rng: random.Random, body: bytes) -> bytes:
    changed = bytearray(body)
    changed[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(rng: random.Random, body: bytes) -> bytes:
    return body[: rng.randrange(len(body))]


def _extend(rng: random.Random, body: bytes) -> bytes:
    return body + rng.randbytes(1 + rng.randrange(2000))


def _join(rng: random.Random, body: bytes) -> bytes:
    """Put the header and the secret of one before the ciphertext of another."""
    other = _sealed(_questions()[0], rng)
    end = len(header_of(body).encoded()) + OVERHEAD - 16
    return body[:end] + other[-(1024 + 16) :]


def _noise(rng: random.Random, _body: bytes) -> bytes:
    return rng.randbytes(rng.randrange(4000))


def _framed_noise(rng: random.Random, body: bytes) -> bytes:
    """Noise of a right form."""
    header = header_of(body).encoded()
    return header + rng.randbytes(OVERHEAD + (1 << rng.randrange(10, 13)))


def _continued_noise(rng: random.Random, body: bytes) -> bytes:
    """Noise of the form of a request that names its secret."""
    header = dataclasses.replace(header_of(body), magic=CONTINUED).encoded()
    return header + rng.randbytes(NAME + 16 + (1 << rng.randrange(10, 13)))


def _renamed(rng: random.Random, _body: bytes) -> bytes:
    return _sealed(_questions()[0], rng, model=rng.choice(["", "big", "tiny ", "x" * 400]))


def _misaddressed(rng: random.Random, _body: bytes) -> bytes:
    """A right request, sealed to another world."""
    content = Content(rng.randbytes(16), NOW, rng.randbytes(32), msgspec.msgpack.encode(Query(0)))
    return seal(content, sealed_secret("", _STRANGER.public, bytes(32)))


def _strange_content(rng: random.Random, _body: bytes) -> bytes:
    """A body that opens, and holds what is no request of now."""
    question = _questions()[0]
    strange: list[Any] = [
        msgspec.structs.replace(question, request=1),
        rng.randbytes(rng.randrange(60)),
        {"type": "Shutdown", "drain": 0},
        {"type": "Recall", "serial": 0, "demand": None, "deadline": 1},
        [],
        b"\x91" * 400,
    ]
    if rng.random() < 0.3:
        return _sealed(question, rng, now=rng.choice([0, NOW - 300_001, NOW + 300_001, 1 << 53]))
    return _sealed(rng.choice(strange), rng, model="tiny")


def main() -> int:
    """Run the fuzzer; return its exit status."""
    parser = argparse.ArgumentParser(prog="sealed_fuzz", description=__doc__)
    parser.add_argument("--bodies", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()

    def say(count: int) -> None:
        sys.stdout.write(f"\r{count} bodies refused alike, {count / (time.monotonic() - began):.0f} a second")
        sys.stdout.flush()

    try:
        count_refused(options.bodies, options.seed, say)
    except AssertionError as error:
        sys.stdout.write(f"\nThis one was not refused as all are: {error}\n")
        return 1
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
