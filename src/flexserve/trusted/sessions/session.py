"""One sealed request while it is answered: its messages leave in frames of one size."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable

import msgspec

from flexserve.protocol.answers import Converted, Delta, Embedded, Failed, Finished, Started
from flexserve.protocol.framing import encode
from flexserve.protocol.messages import Query, Status
from flexserve.protocol.requests import Convert, Embed, Generate, Warm
from flexserve.protocol.sealed_answer import (
    SERVER_NONCE,
    FrameSealer,
    Receipt,
    frame_size,
    hash_of,
)
from flexserve.protocol.sealed_messages import SealedPart
from flexserve.protocol.sealed_pace import Pace
from flexserve.protocol.sealed_request import Asked, Opened, header_of
from flexserve.trusted.sessions.receipts import Receipts

_PART = 1 << 20  # bytes of a message to the normal world, at most
_OWNER = b"flexserve owner of sealed requests\0"

Send = Callable[[msgspec.Struct], None]


class Session:
    """Seals the answer to `opened`, which came as `body` under `number`. Thread-safe.

    `receipts` makes the receipt before a good end; None: there are none. `clock`: seconds.
    """

    def __init__(
        self,
        number: int,
        opened: Opened,
        body: bytes,
        send: Send,
        *,
        receipts: Receipts | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.number, self.asked = number, admitted(opened, number)
        self.request_hash = hashlib.sha256(opened.content.asked).digest()
        self.token_hash = header_of(body).token_hash
        self.digests = ("", "")  # of the model and what it adapts, from the start on
        self._answer = hashlib.sha256()
        self._send, self._receipts = send, receipts
        self._lock = threading.Lock()  # guards what follows, and keeps frames in their order
        self._pace = Pace(clock)
        nonce = secrets.token_bytes(SERVER_NONCE)
        self._frames = FrameSealer(opened.secret, hash_of(body), nonce, frame_size(opened.asked))
        send(SealedPart(number, nonce))

    @property
    def answer_hash(self) -> bytes:
        """The SHA-256 of what was answered so far: the text, or the vectors."""
        return self._answer.digest()

    def take(self, message: msgspec.Struct) -> None:
        """Have a message of the answer leave, at once or with those that follow."""
        with self._lock:
            match message:
                case Delta() | Converted():
                    self._answer.update(message.text.encode())
                case Embedded():
                    for vector in message.vectors:
                        self._answer.update(vector)
                case Started() if self._receipts is not None and isinstance(self.asked, Generate | Embed):
                    self.digests = self._receipts.digests(self.asked.model)
                case Finished() if self._receipts is not None:
                    signed = self._receipts.made(self, message)
                    if signed is not None:
                        self._frames.add(encode(Receipt(self.number, signed)))
            self._frames.add(encode(message))
            match message:
                case Delta() if self._pace.add(message.tokens):
                    self._leave()
                case Embedded():
                    for data in self._frames.full():
                        self._send(SealedPart(self.number, data))
                case Finished() | Failed() | Status():
                    self._end()

    def tick(self) -> None:
        """Have tokens leave that waited long enough."""
        with self._lock:
            if self._pace.is_due():
                self._leave()

    def _leave(self) -> None:
        """Send one frame, whatever waits: the number of frames depends on tokens and times alone."""
        self._pace.leave()
        self._send(SealedPart(self.number, self._frames.frame()))

    def _end(self) -> None:
        self._pace.leave()
        data = self._frames.end()
        for start in range(0, len(data), _PART):
            last = start + _PART >= len(data)
            self._send(SealedPart(self.number, data[start : start + _PART], last))


def admitted(opened: Opened, number: int) -> Asked:
    """Return what was asked as the request `number` of an owner whom nobody else can name.

    An answer whose seed is left open gets one here, so that its receipt can say which.
    """
    asked = opened.asked
    if isinstance(asked, Query):
        return Query(number)
    if isinstance(asked, Convert | Warm):
        return msgspec.structs.replace(asked, request=number)
    owner = hashlib.sha256(_OWNER + opened.content.owner + asked.owner.encode()).hexdigest()
    if isinstance(asked, Embed):
        return msgspec.structs.replace(asked, request=number, owner=owner)
    sampling = asked.sampling
    if sampling.seed is None:
        sampling = msgspec.structs.replace(sampling, seed=secrets.randbits(32))
    # How many messages an answer has before its first token must not show how much of the prompt was cached.
    return msgspec.structs.replace(asked, request=number, owner=owner, sampling=sampling, progress=False)
