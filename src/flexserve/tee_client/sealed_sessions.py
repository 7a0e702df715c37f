"""Sealed requests from their coming to their last frame, as the normal world sees them: it reads none.

One that asks a model is opened when that is open, so it waits in the queue twice: to be opened, and for what
it turned out to be. Frames leave as those of trusted/sessions: by tokens and time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import queue
import threading
from collections.abc import Callable
from typing import Protocol

import msgspec

from flexserve.errors import CallerError, FlexServeError, QueueFullError
from flexserve.protocol.answers import Failed, Finished
from flexserve.protocol.failures import failure_of, foreseen
from flexserve.protocol.messages import Query, Status
from flexserve.protocol.rendered import Told
from flexserve.protocol.requests import Cancel, Convert, Warm
from flexserve.protocol.sealed_messages import Sealed, SealedPart
from flexserve.protocol.sealed_pace import Pace, Ticks
from flexserve.protocol.sealed_request import header_of, refusal
from flexserve.protocol.trusted_app import Ticket
from flexserve.tee_client.messages import Finish, broken
from flexserve.tee_client.sealed import SealedRequests, Unsealed
from flexserve.tee_client.sealed_generation import Opening, SealedGenerate

_PART = 1 << 20  # bytes of a message to the normal world, at most
_MOST_QUESTIONS = 64  # that ask no model, and wait

Send = Callable[[msgspec.Struct], None]
Admitted = Opening | SealedGenerate | Convert | Warm
_TOLD = msgspec.msgpack.Decoder(Told)
_ASKED = msgspec.msgpack.Decoder(Query | Warm | Convert)


class Policy(Protocol):
    """Who schedules (serving.service.Service)."""

    def submit(self, ticket: Ticket) -> None:
        """Have a request that was admitted run."""

    def obey(self, message: Cancel) -> None:
        """Break a request off."""

    def status(self, serial: int) -> Status:
        """Return how things are."""


@dataclasses.dataclass(slots=True, eq=False)
class _Session:
    """One sealed request. `lock` keeps its frames in their order; who has the link's turn never takes it.

    `leave` sends one of its frames.
    """

    opening: Opening
    leave: Callable[[_Session], None]
    unsealed: Unsealed | None = None  # from its opening on
    messages: list[msgspec.Struct] = dataclasses.field(default_factory=list)  # that answer a question
    last: bytes = b""  # the last frames of an answer that said all
    pace: Pace = dataclasses.field(default_factory=Pace)
    cancelled: bool = False
    lock: threading.RLock = dataclasses.field(default_factory=threading.RLock)

    @property
    def number(self) -> int:
        return self.opening.request

    def tick(self) -> None:
        """Have tokens leave that waited long enough."""
        with self.lock, contextlib.suppress(FlexServeError):  # who ends it hears of that, too
            if self.pace.is_due():
                self.leave(self)


class SealedSessions:
    """Has sealed requests opened, run and answered. Thread-safe.

    `admit` takes a request in (app.InsideApp.admit), `send` sends to the normal world.
    """

    def __init__(
        self, requests: SealedRequests, admit: Callable[[Admitted, Send], Ticket], send: Send
    ) -> None:
        self._requests, self._admit, self._send = requests, admit, send
        self._policy: Policy
        self._ticks: Ticks[_Session] = Ticks(send)
        self._questions: queue.Queue[_Session] = queue.Queue(_MOST_QUESTIONS)

    def start(self, policy: Policy) -> None:
        """Have requests run by `policy`, and frames leave in time."""
        self._policy = policy
        self._ticks.start()
        threading.Thread(target=self._answer_questions, name="sealed-questions", daemon=True).start()

    def open(self, message: Sealed) -> None:
        """Take a sealed request in. Raises PeerError for a number that another request has."""
        try:
            model = header_of(message.body).model
        except CallerError:
            self._ticks.refuse(message.request)
            return
        session = _Session(Opening(message.request, model, message.body), self._leave)
        self._ticks.begin(session.number, session)
        if model:
            self._policy.submit(self._admit(session.opening, self._send))
            return
        try:
            self._questions.put_nowait(session)
        except queue.Full:
            self._fail(session, QueueFullError("Too many ask questions.", hint="Retry in a moment."))

    def cancel(self, number: int) -> None:
        """Break a request off that is between its two places in the queue. Policy does all else."""
        session = self._ticks.find(number)
        if session is not None:
            session.cancelled = True

    def report(self, message: msgspec.Struct) -> None:
        """Send what policy says; the end of a sealed request makes its last frames, or its next step."""
        session = None
        if isinstance(message, Finished | Failed):
            session = self._ticks.find(message.request)
        if session is None:
            self._send(message)
        elif isinstance(message, Failed):
            self._break_off(session, message)
        elif session.unsealed is None:
            self._go_on(session)
        else:
            self._end(session, message)

    # ---- once it is open -------------------------------------------------------------------------

    def _go_on(self, session: _Session) -> None:
        """Have a request run that was opened just now."""
        unsealed = session.opening.unsealed
        assert unsealed is not None, "it ended well, so it was opened"
        session.unsealed = unsealed
        self._send(SealedPart(session.number, unsealed.begin))
        number, model = session.number, session.opening.model
        try:
            asked: Query | Admitted
            if unsealed.most:
                told = _TOLD.decode(unsealed.told) if unsealed.told else Told()
                asked = SealedGenerate(number, model, unsealed, told, functools.partial(self.heard, session))
            else:
                asked = _ASKED.decode(unsealed.told)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self._fail(session, refusal())
            return
        if isinstance(asked, Query):
            self._end(session, self._policy.status(number))
            return
        if asked.model != model:
            self._fail(session, refusal())
            return
        if isinstance(asked, Convert | Warm):
            asked = msgspec.structs.replace(asked, request=number)
        self._policy.submit(self._admit(asked, session.messages.append))
        if session.cancelled:
            self._policy.obey(Cancel(number))

    def heard(self, session: _Session, tokens: int, finish: Finish) -> None:
        """Take in that a step said so many tokens; have frames leave. The engine thread."""
        with session.lock:
            if finish is not Finish.NO:
                session.pace.leave()
                assert session.unsealed is not None, "it was opened"
                session.last = self._requests.finish(session.unsealed.session)
                if not session.last:
                    raise broken("an answer that it ended has no end")
            elif session.pace.add(tokens):
                self._leave(session)

    def _leave(self, session: _Session) -> None:
        """Send one frame, whatever waits: the number of frames depends on tokens and times alone."""
        assert session.unsealed is not None, "it was opened"
        session.pace.leave()
        self._send(SealedPart(session.number, self._requests.frame(session.unsealed.session)))

    # ---- its end ---------------------------------------------------------------------------------

    def _end(self, session: _Session, message: msgspec.Struct) -> None:
        """Answer a question by what is there and `message`; send what is left of a text."""
        with session.lock:
            assert session.unsealed is not None, "it was opened"
            data = session.last
            if not session.unsealed.most:
                answer = [*session.messages, message]
                data = self._requests.answer(session.unsealed.session, answer)
            self._send_last(session, data)

    def _fail(self, session: _Session, error: FlexServeError) -> None:
        self._break_off(session, Failed(session.number, failure_of(error)))

    def _break_off(self, session: _Session, message: Failed) -> None:
        """End a request by a failure: sealed, if it was opened."""
        opened = session.unsealed
        if opened is None and session.opening.unsealed is not None:  # cancelled as soon as it was
            opened = session.unsealed = session.opening.unsealed
            self._send(SealedPart(session.number, opened.begin))
        if opened is None:
            self._ticks.end(session.number)
            if message.failure.code == refusal().code:
                self._ticks.refuse(session.number)
            else:
                self._send(message)
            return
        try:
            if not opened.most:
                self._end(session, message)
                return
            with session.lock:
                self._send_last(session, self._requests.fail(opened.session, message.failure))
        except FlexServeError:  # the application has ended, or this answer has: it is cut off
            self._ticks.end(session.number)
            self._send(SealedPart(session.number, b"", last=True))

    def _send_last(self, session: _Session, data: bytes) -> None:
        """Send the last frames; where there are none, the answer is cut off. Under its lock."""
        self._ticks.end(session.number)
        session.pace.leave()
        for start in range(0, max(1, len(data)), _PART):
            last = start + _PART >= len(data)
            self._send(SealedPart(session.number, data[start : start + _PART], last))

    # ---- a thread of its own -----------------------------------------------------------------------

    def _answer_questions(self) -> None:
        """Open what asks no model, and answer it."""
        while True:
            session = self._questions.get()
            try:
                session.opening.unsealed = self._requests.unseal(0, session.opening.body)
                self._go_on(session)
            except FlexServeError as error:
                self._fail(session, foreseen(error))
