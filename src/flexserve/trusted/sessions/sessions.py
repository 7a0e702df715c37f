"""Sealed requests from their opening to their last frame."""

from __future__ import annotations

import threading

import msgspec

from flexserve.errors import CallerError
from flexserve.protocol.answers import Failed, Finished
from flexserve.protocol.messages import Status
from flexserve.protocol.sealed_messages import Sealed
from flexserve.protocol.sealed_pace import Ticks
from flexserve.protocol.sealed_request import NAME, Unseal, open_request
from flexserve.trusted.sessions.clock import Clock
from flexserve.trusted.sessions.next_secrets import NextSecrets
from flexserve.trusted.sessions.receipts import Receipts
from flexserve.trusted.sessions.seen import SeenRequests
from flexserve.trusted.sessions.session import Send, Session


class Sessions:
    """Opens sealed requests and ends their answers. Thread-safe.

    `unseal` opens what is sealed to this world's keys. `send`: to the normal world. `receipts` makes those of
    answers that end well; None: there are none.
    """

    def __init__(self, unseal: Unseal, send: Send, clock: Clock, receipts: Receipts | None) -> None:
        self._unseal, self._send, self._clock, self._receipts = unseal, send, clock, receipts
        self._ticks: Ticks[Session] = Ticks(send)
        self._lock = threading.Lock()  # guards the next two
        self._seen, self._next = SeenRequests(), NextSecrets()

    def start(self) -> None:
        """Have tokens leave in time that wait for others, and refusals."""
        self._ticks.start()

    def open(self, message: Sealed) -> Session | None:
        """Return the session that answers a sealed request, begun; None: it is refused.

        A refusal leaves with the next tick, so its time does not tell how far the request was opened. Raises
        PeerError for a number that another request has.
        """
        self._ticks.expect()
        try:
            opened = open_request(message.body, self._secret)
            with self._lock:
                self._seen.admit(opened.content, now := self._clock())
                self._next.keep(opened.content.next, now)
        except CallerError:
            self._ticks.refuse(message.request)
            return None
        session = Session(message.request, opened, message.body, self._send, receipts=self._receipts)
        self._ticks.begin(session.number, session)
        return session

    def _secret(self, sealed: bytes, info: bytes) -> bytes:
        """Return the secret of a request, which is sealed, or named. Raises CallerError."""
        if len(sealed) != NAME:
            return self._unseal(sealed, info)
        with self._lock:
            return self._next.take(sealed, self._clock())

    def send(self, message: msgspec.Struct) -> None:
        """Send a message; one that ends an answer is sealed, if its request was."""
        if not isinstance(message, Finished | Failed | Status):
            self._send(message)
            return
        number = message.serial if isinstance(message, Status) else message.request
        session = self._ticks.end(number)
        if session is None:
            self._send(message)
        else:
            session.take(message)

    def tick(self) -> None:
        """Have tokens leave that waited long enough, and refusals."""
        self._ticks.tick()
