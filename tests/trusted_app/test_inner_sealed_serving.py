"""Sealed requests through all of policy: a client of `flexserve connect` asks the application of S-EL0."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2
import msgspec
import pytest
from inner_application import QUESTION, ROOT, Application, plain, provide
from sealed_client import MEASUREMENTS, certified

from flexserve.attestation.kept_receipt import KeptReceipt, verify_receipt
from flexserve.attestation.policy import Policy
from flexserve.emulator.trusted_app import Programs
from flexserve.errors import CallerError, FlexServeError
from flexserve.normal.connect import Verifier
from flexserve.normal.known_roots import KnownRoots
from flexserve.normal.remote_server import Attestation
from flexserve.normal.remote_world import RemoteWorld, Trust
from flexserve.protocol.answers import Delta, Failed, Finished, Started
from flexserve.protocol.evidence import Attest
from flexserve.protocol.failures import revive
from flexserve.protocol.launch import SecureOptions
from flexserve.protocol.memory import Recall
from flexserve.protocol.prompts import ChatMessage, ChatPrompt
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.sealed_messages import Sealed, SealedPart
from flexserve.serving.service import Service
from flexserve.tee_client.app import InsideApp
from flexserve.tee_client.files import SealedFiles
from flexserve.tee_client.rendering import PromptRenderer
from flexserve.tee_client.sealed_sessions import SealedSessions
from flexserve.tee_client.witness import Witness
from flexserve.trusted.limits import Limits, ModelLimits
from flexserve.trusted.store import DeviceKey, Store
from flexserve.trusted.text.rendering.renderer import Renderer

PATIENCE = 120  # seconds, on a machine that does much else
SYSTEM = "You know everything about memory that is secure and can be recalled, and you answer briefly."


@dataclasses.dataclass
class Answer:
    """What a client got."""

    text: str
    started: Started
    finished: Finished


class SealedServer:
    """A server over an application, as remote_world.RemoteWorld asks one elsewhere."""

    url = "here"

    def __init__(self, application: Application, store: Path, renderer: Renderer) -> None:
        self._queues: dict[int, queue.SimpleQueue[Any]] = collections.defaultdict(queue.SimpleQueue)
        limits, files = ModelLimits(Limits(1024, 2, 1 << 30)), SealedFiles(store)
        self.app = InsideApp(*(application.link, files, renderer, limits, self._send), threads=1)
        self.sessions = SealedSessions(self.app.sealed, self.app.admit, self._send)
        self.service = Service(
            *(self.app, SecureOptions(store, store), self._send),
            report=self.sessions.report,
            rss=lambda: 0,
        )
        self.sessions.start(self.service)
        identity = msgspec.msgpack.encode([certified(), cbor2.dumps(MEASUREMENTS)])
        self._witness = Witness(self.app.sealed, files, identity, self._send)
        self._numbers = itertools.count(1)
        self.passed: list[bytes] = []  # all that a relay sees

    def _send(self, message: Any) -> None:
        number = getattr(message, "request", getattr(message, "serial", None))
        if number is not None:  # else it is news of what computes
            self._queues[number].put(message)

    async def _heard(self, number: int) -> Any:
        return await asyncio.to_thread(self._queues[number].get, timeout=PATIENCE)

    async def attestation(self, nonce: bytes) -> Attestation:
        self._witness.ask(Attest(number := next(self._numbers), nonce))
        said = await self._heard(number)
        return Attestation(said.chain, said.token)

    @contextlib.asynccontextmanager
    async def sealed(self, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        self.sessions.open(Sealed(number := next(self._numbers), body))
        self.passed.append(body)
        first = await self._heard(number)
        if isinstance(first, Failed):
            raise revive(first.failure)

        async def pieces() -> AsyncIterator[bytes]:
            part = first
            while isinstance(part, SealedPart):
                self.passed.append(part.data)
                yield part.data
                if part.last:
                    return
                part = await self._heard(number)

        yield pieces()

    async def close(self) -> None:
        """Do nothing."""

    def recall(self) -> int:
        """Have the OS take all memory that no request uses."""
        return self.service.recall(Recall(0, demand=None, deadline=10_000)).returned

    def seal(self) -> None:
        """Seal all idle conversations."""
        while self.app.idle_kv()[0].worth_sealing:
            self.app.grant(self.app.sealing_size("tiny", 0), 0)
            self.app.seal("tiny", 0)


class Person:
    """Somebody who asks through `flexserve connect`. `kept`: receipts."""

    def __init__(self, server: SealedServer, renderer: Renderer, folder: Path) -> None:
        self.kept: list[tuple[bytes, Trust]] = []
        self.policy = Policy(emulated="allow")
        self._world = RemoteWorld(
            server,  # type: ignore[arg-type]
            Verifier(server.url, self.policy, KnownRoots(folder / "roots")),
            lambda _name, signed, trust: self.kept.append((signed, trust)),
            rendering=lambda: PromptRenderer(renderer),
        )

    def elsewhere(self, server: SealedServer) -> None:
        """Have another process serve at the address."""
        self._world._server = server  # type: ignore[assignment]

    def do(self, work: Callable[[RemoteWorld], Any]) -> Any:
        async def done() -> Any:
            return await work(self._world)

        return asyncio.run(done())

    def ask(self, *turns: str, during: Callable[[], object] | None = None, **how: Any) -> Answer:
        """Return the answer to a conversation; `during` is done when its first text is there."""
        roles = itertools.cycle(("user", "assistant"))
        prompt = ChatPrompt([ChatMessage(role, text) for role, text in zip(roles, turns, strict=False)])
        sampling = Sampling(**{"temperature": 0.0, "max_tokens": 24, **how})

        async def asked(world: RemoteWorld) -> list[Any]:
            found, do = [], during
            async with await world.generate("tiny", prompt, sampling) as answer:
                async for message in answer:
                    found.append(message)
                    if isinstance(message, Delta) and do is not None:
                        await asyncio.to_thread(do)
                        do = None
            return found

        messages = self.do(asked)
        text = "".join(message.text for message in messages if isinstance(message, Delta))
        return Answer(text, messages[0], messages[-1])


@contextlib.contextmanager
def serving(emulator: str, programs: Programs, store: Path, renderer: Renderer) -> Iterator[SealedServer]:
    application = Application([emulator, "-cpu", "cortex-a76", programs.application], hello=False)
    server = SealedServer(application, store, renderer)
    provide(application)
    try:
        yield server
    finally:
        server.service._scheduler.drain(5)
        application.end()


@pytest.fixture(scope="module")
def server(
    emulator: str, programs: Programs, sealed_store: Path, renderer: Renderer
) -> Iterator[SealedServer]:
    with serving(emulator, programs, sealed_store, renderer) as server:
        yield server


@pytest.fixture
def person(server: SealedServer, renderer: Renderer, tmp_path: Path) -> Person:
    return Person(server, renderer, tmp_path)


def test_it_is_verified_and_answers_before_during_and_after_recalls_as_llama_cpp_does(
    person: Person, server: SealedServer, emulator: str, programs: Programs
) -> None:
    before = person.ask("What is Flex-Mem?")
    during = person.ask("What is Flex-Mem?", during=server.recall)
    assert server.recall() > 0
    after = person.ask("What is Flex-Mem?")
    assert before.text == during.text == after.text
    assert before.text.startswith("Flex-Mem is recallable secure memory.")
    assert before.finished.usage.completion_tokens == 24
    assert before.started.prompt_tokens > 0
    assert len(plain(emulator, programs, QUESTION, 1, 24)) == 24


def test_its_receipts_say_which_weights_answered(person: Person, sealed_store: Path) -> None:
    person.ask("What is FlexServe?")
    [(signed, trust)] = person.kept
    evidence = trust.evidence
    kept = KeptReceipt(signed, evidence.chain, evidence.token, evidence.nonce)
    receipt, _ = verify_receipt(kept, person.policy)
    assert (receipt.model, receipt.answer_tokens) == ("tiny", 24)
    assert receipt.gguf.hex() == Store(sealed_store, DeviceKey(ROOT)).list()[0].digest
    assert trust.shown["verified"]
    assert not trust.renders


def test_nobody_between_reads_a_word(person: Person, server: SealedServer) -> None:
    server.passed.clear()
    answer = person.ask("What is a zyzzogeton?").text
    crossed = b"".join(server.passed)
    assert len(answer) > 16
    for words in (b"zyzzogeton", answer[:16].encode(), b"<|im_start|>"):
        assert words not in crossed


def test_a_conversation_goes_on_and_from_its_sealed_kv_too(person: Person, server: SealedServer) -> None:
    first = person.ask(SYSTEM * 2, max_tokens=8)
    second = person.ask(SYSTEM * 2, first.text, "Go on.", max_tokens=8)
    assert second.started.cached_tokens >= first.started.prompt_tokens
    server.seal()
    server.recall()
    resumed = server.app.kv_status().resumed
    third = person.ask(SYSTEM * 2, first.text, "Go on.", second.text, "And?", max_tokens=8)
    assert third.started.cached_tokens >= first.started.prompt_tokens
    assert server.app.kv_status().resumed > resumed


def test_another_process_goes_on_from_what_one_has_sealed(
    person: Person,
    server: SealedServer,
    emulator: str,
    programs: Programs,
    sealed_store: Path,
    renderer: Renderer,
) -> None:
    first = person.ask(SYSTEM * 2 + "!", max_tokens=8)
    server.seal()
    with serving(emulator, programs, sealed_store, renderer) as other:
        person.elsewhere(other)
        again = person.ask(SYSTEM * 2 + "!", max_tokens=8)
    assert again.text == first.text
    assert again.started.cached_tokens > 32


def test_its_models_are_listed_and_warmed_by_sealed_questions(person: Person) -> None:
    [model] = person.do(lambda world: world.models())
    assert model.name == "tiny"
    person.do(lambda world: world.warm("tiny", None))


def test_what_the_application_cannot_do_sealed_is_refused_by_name(person: Person) -> None:
    with pytest.raises(CallerError) as refused:
        person.ask("Hi", schema="{}")
    assert refused.value.code == "secure_world_inside"


def test_a_model_that_is_not_there_is_refused(person: Person) -> None:
    with pytest.raises(FlexServeError, match="no model named"):
        person.do(lambda world: world.warm("other", None))
