"""Sealed requests on their way to the trusted application and back: bytes, counts and terms are seen here."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Protocol

import msgspec

from flexserve.errors import CallerError, FlexServeError, NormalWorldError
from flexserve.protocol.framing import encode
from flexserve.protocol.sealed_answer import SERVER_NONCE
from flexserve.protocol.sealed_request import refusal
from flexserve.protocol.statuses import Failure
from flexserve.tee_client.application import foreign
from flexserve.tee_client.files import SealedFile, SealedFiles
from flexserve.tee_client.messages import Ask, Reply, Status, broken


@dataclasses.dataclass(frozen=True, slots=True)
class Unsealed:
    """A sealed request that the application opened.

    `session` names it from here on. `tokens`: of its prompt. `most`: tokens to say; 0: it asks `told`, and is
    answered here. `owner`: of its KV, two numbers. `begin`: what the client gets before the first frame.
    `told`: what its sender says to us, in MessagePack (protocol.rendered).
    """

    session: int
    tokens: int
    most: int
    owner: tuple[int, int]
    begin: bytes
    told: bytes


class Asked(Protocol):
    """Who is asked: the application (application.Application), or a link to it."""

    def ask(self, kind: Ask, *arguments: int, payload: bytes = b"") -> Reply:
        """As Link.ask."""


class SealedRequests:
    """Passes sealed requests to the application behind `link`, and frames of their answers back.

    Thread-safe. Each method raises what Link.ask raises, too.
    """

    def __init__(self, link: Asked) -> None:
        self._link = link
        self._known: dict[str, bytes] = {}  # by which block the application knows a model, by its id …
        self._foreign: set[str] = set()  # … and ids of those for which nobody makes it one

    def attest(self, nonce: bytes, measurements: bytes, now: float | None = None) -> bytes:
        """Return a token with `nonce`. `measurements`: what the application's certificate is about, in CBOR.

        `now`: seconds since 1970; the application believes the first one that it hears, and counts by itself
        from then on. Raises NormalWorldError while the machine does not protect it.
        """
        moment = int(1000 * (time.time() if now is None else now))
        reply = self._link.ask(Ask.ATTEST, moment, len(nonce), payload=nonce + measurements)
        if reply.status is not Status.DONE:
            raise NormalWorldError(
                "The trusted application does not attest: the machine does not protect it.",
                hint="Restart flexserve.",
                code="not_protected",
            )
        return reply.payload

    def know(self, block: bytes) -> bool:
        """Tell it the first block of a sealed model: from here on tokens and receipts have its digest.

        False: the device whose secret it has did not sign that.
        """
        return self._link.ask(Ask.KNOW, payload=block).status is Status.DONE

    def forget_removed(self, files: SealedFiles) -> None:
        """Have the application forget models that are in the store no more: no token names them from here on.

        Raises NormalWorldError when the store cannot be listed.
        """
        known = set(self._known)  # before the look: what is added meanwhile is told, and stays
        for number in known.difference(manifest.model_id for manifest in files.manifests()):
            if (block := self._known.pop(number, None)) is not None:
                self._link.ask(Ask.KNOW, 1, payload=block)

    def opened(self, files: SealedFiles, name: str) -> SealedFile:
        """Open a model's file, and tell the application of it, if it does not know it yet. Close the file.

        Raises as SealedFiles.open; StoredDataError for a model that was sealed for another device;
        NormalWorldError when it cannot be made ready for the application now.
        """
        file = files.open(name)
        try:
            number = file.manifest.model_id
            if not self._is_told_of(file):
                if number in self._foreign or not files.other_block(file):
                    self._foreign.add(number)
                    raise foreign()
                file.close()
                file = files.open(name)
                if not self._is_told_of(file):
                    raise foreign()
        except BaseException:
            file.close()
            raise
        return file

    def _is_told_of(self, file: SealedFile) -> bool:
        """Have the application know a model by one of its blocks, which is used from then on."""
        number = file.manifest.model_id
        for block in file.blocks:
            if self._known.get(number) == block or self.know(block):
                self._known[number] = file.block = block
                return True
        return False

    def unseal(self, model: int, body: bytes) -> Unsealed:
        """Have a request opened that asks the open model of number `model`; any number if it asks none.

        Raises CallerError, the same one whatever is wrong with it: answer it with the next tick of a clock.
        """
        reply = self._link.ask(Ask.UNSEAL, model, payload=body)
        if reply.status is Status.BUSY:
            raise CallerError("Too many sealed requests are under way.", hint="Retry.", code="busy")
        if reply.status is not Status.DONE:
            raise refusal()
        session, tokens, most, *owner = reply.values
        begin, told = reply.payload[:SERVER_NONCE], reply.payload[SERVER_NONCE:]
        if len(begin) != SERVER_NONCE:
            raise broken("the answer to a sealed request does not begin")
        return Unsealed(session, tokens, most, (owner[0], owner[1]), begin, told)

    def begin(self, model: int, sequence: int, session: int) -> int:
        """Begin the answer on a sequence that says nothing; return the tokens to compute before the first.

        It goes on by Ask.STEP, as others do. Raises CallerError for a prompt that does not fit, or sampling
        that is none.
        """
        reply = self._link.ask(Ask.BEGIN_SEALED, model, sequence, session)
        if reply.status is not Status.DONE:
            raise CallerError(
                "The prompt does not fit the model's context, or its sampling is none.",
                hint="Make it shorter.",
                code="sealed_prompt_refused",
            )
        return reply.values[0]

    def frame(self, session: int) -> bytes:
        """Return one frame, with what was said since the last one, as far as it fits."""
        return _done(self._link.ask(Ask.FRAME, session)).payload

    def finish(self, session: int) -> bytes:
        """Return the last frames of an answer that said all; b"" of others. The session has gone."""
        return _done(self._link.ask(Ask.FINISH, session)).payload

    def answer(self, session: int, answer: Sequence[msgspec.Struct]) -> bytes:
        """Return the frames of a question that these messages answer. The session has gone."""
        return _done(self._link.ask(Ask.FINISH, session, payload=b"".join(map(encode, answer)))).payload

    def fail(self, session: int, failure: Failure) -> bytes:
        """Return the last frames of an answer that breaks off. The session has gone."""
        return _done(self._link.ask(Ask.FINISH, session, payload=msgspec.msgpack.encode(failure))).payload


def _done(reply: Reply) -> Reply:
    if reply.status is not Status.DONE:
        raise _ended()
    return reply


def _ended() -> FlexServeError:
    return CallerError("That sealed request is not under way any more.", hint="Seal it again.", code="ended")
