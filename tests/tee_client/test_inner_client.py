"""The client of an application inside the machine speaks with a normal world as a secure world does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from played_wire import PlayedWire

from flexserve.platforms.trustzone.ram import PAGE
from flexserve.protocol import framing
from flexserve.protocol.answers import Failed, Finished
from flexserve.protocol.evidence import Attest, Attested
from flexserve.protocol.launch import SecureOptions
from flexserve.protocol.link import Link as Channel
from flexserve.protocol.memory import Recall, Recalled
from flexserve.protocol.messages import (
    PROTOCOL_VERSION,
    Computing,
    Configure,
    Query,
    Status,
    ToNormal,
    Welcome,
)
from flexserve.protocol.model_options import ModelOptions
from flexserve.protocol.prompts import TextPrompt
from flexserve.protocol.requests import Generate
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.sealed_messages import Sealed
from flexserve.protocol.trusted_app import Ticket, Work
from flexserve.tee_client.client import Client
from flexserve.tee_client.files import SealedFiles
from flexserve.tee_client.link import Link
from flexserve.tee_client.ring_demands import LAYOUT, OFFSET
from flexserve.tee_client.sealed import SealedRequests
from flexserve.tee_client.witness import Witness
from flexserve.testing.fake_app import CHUNK, FakeApp, FakeModel, FakeRequest
from flexserve.testing.trustzone import eventually
from flexserve.trusted.limits import Limits, ModelLimits


class Inside(FakeApp):
    """An application without an engine that takes requests in."""

    def __init__(self) -> None:
        super().__init__(tiny=FakeModel(8 * CHUNK))
        self.sealed = SealedRequests(Link(PlayedWire(lambda *_: None)))

    def admit(self, message: Any, send: Any = None) -> Ticket:
        ticket = Ticket(message.request, message.model, Work.GENERATE, time.monotonic())
        self.requests[message.request] = FakeRequest(ticket)
        return ticket


class NormalWorld:
    """The other end of a client's channel, and the guest's driver at the other end of its ring."""

    def __init__(self) -> None:
        self.app, self.ring = Inside(), bytearray(PAGE)
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(10)
        self._decoder: framing.FrameDecoder[ToNormal] = framing.FrameDecoder(ToNormal)
        self._waiting: list[ToNormal] = []
        options = SecureOptions(Path(), Path())
        self.limits = ModelLimits(Limits.usual(options))
        channel = Channel(theirs)
        client = Client(
            *(channel, self.app, self.limits, options),
            Witness(self.app.sealed, SealedFiles(Path()), b"", channel.send),
            ring=memoryview(self.ring),
            ram=1 << 30,
            rss=lambda: 77,
            sandbox="It is sandboxed.",
            engine="an engine of a test",
        )
        self._thread = threading.Thread(target=client.serve, daemon=True)
        self._thread.start()

    def say(self, message: msgspec.Struct) -> None:
        self._socket.sendall(framing.encode(message))

    def hear(self) -> ToNormal:
        """Return the next message that is no news of what computes."""
        while not self._waiting:
            said = self._decoder.feed(self._socket.recv(1 << 16))
            self._waiting += [message for message in said if not isinstance(message, Computing)]
        return self._waiting.pop(0)

    def close(self) -> None:
        self._socket.close()
        self._thread.join(10)


@pytest.fixture
def normal() -> Iterator[NormalWorld]:
    normal = NormalWorld()
    yield normal
    normal.close()


@pytest.fixture
def greeted(normal: NormalWorld) -> NormalWorld:
    """One that heard the welcome."""
    assert isinstance(normal.hear(), Welcome)
    return normal


def generate(number: int) -> Generate:
    return Generate(number, "tiny", TextPrompt("Once"), Sampling())


def test_it_says_what_computes_and_what_protects(normal: NormalWorld) -> None:
    welcome = normal.hear()
    assert isinstance(welcome, Welcome)
    assert (welcome.version, welcome.protection) == (PROTOCOL_VERSION, "trustzone-emulated-inside")
    assert welcome.protected
    assert "process of the host" in welcome.summary
    assert welcome.summary.endswith("It is sandboxed.")
    assert welcome.engine == "an engine of a test"


def test_a_request_runs_and_status_tells_of_it(greeted: NormalWorld) -> None:
    greeted.say(generate(1))
    finished = greeted.hear()
    assert isinstance(finished, Finished)
    assert finished.request == 1
    greeted.say(Query(2))
    status = greeted.hear()
    assert isinstance(status, Status)
    assert (status.serial, status.memory.os_rss) == (2, 77)
    assert [model.name for model in status.models] == ["tiny"]


def test_memory_is_recalled_by_people_and_by_the_guests_kernel(greeted: NormalWorld) -> None:
    greeted.say(generate(1))
    greeted.hear()
    assert greeted.app.used > CHUNK
    greeted.say(Recall(2, CHUNK, 1000))
    recalled = greeted.hear()
    assert isinstance(recalled, Recalled)
    assert recalled.returned >= CHUNK
    LAYOUT.pack_into(greeted.ring, OFFSET, 1, 100, 1 << 20)
    assert eventually(lambda: greeted.app.used == 0)


def test_how_models_are_to_be_served_reaches_the_application(greeted: NormalWorld) -> None:
    greeted.say(Configure({"tiny": ModelOptions(context=256)}))
    assert eventually(lambda: greeted.limits.of("tiny").context == 256)


def test_sealed_requests_and_questions_who_it_is_go_to_who_answers_them(greeted: NormalWorld) -> None:
    greeted.say(Sealed(3, b"x" * 64))
    refused = greeted.hear()
    assert isinstance(refused, Failed)
    assert (refused.request, refused.failure.code) == (3, "sealed_refused")
    greeted.say(Attest(4, bytes(32)))
    said = greeted.hear()
    assert isinstance(said, Attested)
    assert said.failure is not None
    assert said.failure.code == "not_certified"
