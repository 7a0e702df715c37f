"""Policy drives the trusted application of S-EL0 over the port, as it drives the host's."""

from __future__ import annotations

import dataclasses
import json
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from inner_application import QUESTION, ROOT, Application, plain

from flexserve.emulator.trusted_app import Programs
from flexserve.policy.eviction_policy import EvictionPolicy
from flexserve.protocol.answers import Delta, Failed, Finished, Started
from flexserve.protocol.memory import Recall, Recalled
from flexserve.protocol.prompts import ChatMessage, ChatPrompt, TextPrompt
from flexserve.protocol.requests import Generate
from flexserve.protocol.sampling import Sampling
from flexserve.serving.memory_manager import MemoryManager
from flexserve.serving.model_manager import ModelManager
from flexserve.serving.scheduler import Scheduler
from flexserve.tee_client.app import InsideApp
from flexserve.tee_client.disk import Disk
from flexserve.tee_client.files import SealedFiles
from flexserve.tee_client.messages import Ask
from flexserve.trusted.limits import Limits, ModelLimits
from flexserve.trusted.text.rendering.renderer import Renderer

CHAT = ChatPrompt([ChatMessage("user", "What is Flex-Mem?")])
USUAL = Limits(1024, 2, 1 << 30)
PATIENCE = 120  # seconds, on a machine that does much else


@dataclasses.dataclass
class Answer:
    """What a request got."""

    text: str
    tokens: list[int]
    started: Started
    finished: Finished
    logprobs: list[float | None]


class Served:
    """The application with all of policy over it."""

    def __init__(
        self,
        application: Application,
        store: Path,
        renderer: Renderer,
        *,
        disk: Disk | None = None,
        limits: Limits = USUAL,
    ) -> None:
        self._sent: queue.SimpleQueue[Any] = queue.SimpleQueue()
        files = SealedFiles(store)
        self.app = InsideApp(
            *(application.link, files, renderer, ModelLimits(limits), self._sent.put), threads=1, disk=disk
        )
        application.ask(Ask.SECRET, payload=ROOT)  # which is refused at S-EL0: there is one
        self.models = ModelManager(self.app, idle=3600)
        self.memory = MemoryManager(self.app, self.models, EvictionPolicy(self.app.chunk))
        send = self._sent.put
        self.scheduler = Scheduler(
            *(self.app, self.models, self.memory, send), limit=8, sequences=2, patience=600.0
        )
        self._serial = 0

    def ask(
        self,
        prompt: ChatPrompt | TextPrompt,
        most: int = 100,
        during: Callable[[], object] | None = None,
        **how: Any,
    ) -> Answer:
        """Ask; `during` is done when the first token is there. `how`: fields of Sampling."""
        self._serial += 1
        sampling = Sampling(temperature=0, max_tokens=most, **how)
        self.scheduler.submit(self.app.admit(Generate(self._serial, "tiny", prompt, sampling)))
        answer, answers = None, list[Any]()
        while not isinstance(answer, Finished):
            answer = self._sent.get(timeout=PATIENCE)
            assert not isinstance(answer, Failed), answer
            answers.append(answer)
            if isinstance(answer, Delta) and during is not None:
                during()
                during = None
        deltas = [each for each in answers if isinstance(each, Delta)]
        return Answer(
            "".join(delta.text for delta in deltas),
            [token for delta in deltas for token in delta.ids],
            next(each for each in answers if isinstance(each, Started)),
            answer,
            [choice.token.logprob for delta in deltas for choice in delta.choices],
        )

    def seal(self) -> None:
        """Seal all idle conversations."""
        while self.app.idle_kv()[0].worth_sealing:
            self.app.grant(self.app.sealing_size("tiny", 0), 0)
            self.app.seal("tiny", 0)

    def recall(self, demand: int | None = None) -> Recalled:
        """Have the OS ask for memory."""
        return self.memory.answer(Recall(1, demand=demand, deadline=10_000))


@pytest.fixture(scope="module")
def served(emulator: str, programs: Programs, sealed_store: Path, renderer: Renderer) -> Iterator[Served]:
    application = Application([emulator, "-cpu", "cortex-a76", programs.application], hello=False)
    served = Served(application, sealed_store, renderer)
    yield served
    served.scheduler.drain(5)
    application.end()


def test_the_demos_model_answers_before_during_and_after_recalls_with_the_tokens_of_llama_cpp(
    served: Served, emulator: str, programs: Programs
) -> None:
    undisturbed = served.ask(CHAT)
    assert undisturbed.text.startswith("Flex-Mem is recallable secure memory.")
    assert undisturbed.tokens == plain(emulator, programs, QUESTION, 1, 100)
    weights = served.app.memory()[0].size
    during = served.ask(CHAT, during=lambda: served.recall(served.app.pool().resident))
    assert during.tokens == undisturbed.tokens
    assert during.finished.timings.restored_bytes >= weights
    recalled = served.recall()
    assert recalled.os_before - recalled.os_after == recalled.returned >= weights
    [memory] = served.app.memory()
    assert (memory.weights, memory.scratch, memory.idle_kv) == (0, 0, 0)
    assert served.ask(CHAT).tokens == undisturbed.tokens


def test_a_conversation_goes_on_from_sealed_kv(served: Served) -> None:
    prompt = TextPrompt(QUESTION * 3)
    before = served.ask(prompt, most=6)
    served.seal()
    served.recall()
    after = served.ask(prompt, most=6)
    assert after.tokens == before.tokens
    assert after.started.cached_tokens == after.started.prompt_tokens - 1
    assert served.app.kv_status().resumed == 1


def test_a_conversation_goes_on_in_another_process(
    served: Served, emulator: str, programs: Programs, sealed_store: Path, renderer: Renderer
) -> None:
    prompt = TextPrompt(QUESTION * 3 + "again")
    before = served.ask(prompt, most=4)
    served.seal()
    application = Application([emulator, "-cpu", "cortex-a76", programs.application], hello=False)
    other = Served(application, sealed_store, renderer)
    try:
        after = other.ask(prompt, most=4)
    finally:
        other.scheduler.drain(5)
        application.end()
    assert after.tokens == before.tokens
    assert after.started.cached_tokens > 32


def test_an_answer_keeps_to_a_schema(served: Served) -> None:
    schema = '{"type": "object", "properties": {"size": {"type": "integer"}}, "required": ["size"]}'
    answer = served.ask(CHAT, most=40, schema=schema)
    assert list(json.loads(answer.text)) == ["size"]


def test_a_prompt_is_told_and_a_full_context_goes_on_with_kv_that_is_quantised(
    emulator: str, programs: Programs, sealed_store: Path, renderer: Renderer
) -> None:
    application = Application([emulator, "-cpu", "cortex-a76", programs.application], hello=False)
    limits = Limits(64, 20, 1 << 30, kv="q8_0", shift=True)
    served = Served(application, sealed_store, renderer, limits=limits)
    try:
        answer = served.ask(TextPrompt(QUESTION), most=12, logprobs=0)
        told = served.ask(TextPrompt(QUESTION + answer.text), most=0, logprobs=0, echo=True)
        assert told.logprobs[0] is None
        assert told.logprobs[-12:] == pytest.approx(answer.logprobs, abs=1e-3)
        long = served.ask(TextPrompt(QUESTION), most=90, ignore_eos=True)
        assert long.text.startswith(answer.text)
        assert long.finished.shifted
        assert long.finished.usage.completion_tokens == 90
    finally:
        served.scheduler.drain(5)
        application.end()
