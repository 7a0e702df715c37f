"""What drives a played application: the port's implementation, and all of policy over it."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import msgspec
from played_application import END, PlayedApplication

from flexserve.policy.eviction_policy import EvictionPolicy
from flexserve.protocol.answers import Converted, Delta, Failed, Finished, Started
from flexserve.protocol.memory import Recall, Recalled
from flexserve.protocol.prompts import ChatPrompt, TextPrompt
from flexserve.protocol.requests import Convert, Embed, Generate, Try, Warm
from flexserve.protocol.sampling import Sampling
from flexserve.serving.memory_manager import MemoryManager
from flexserve.serving.model_manager import ModelManager
from flexserve.serving.scheduler import Scheduler
from flexserve.tee_client.app import InsideApp
from flexserve.tee_client.files import SealedFiles
from flexserve.tee_client.link import Link
from flexserve.trusted.limits import Limits, ModelLimits
from flexserve.trusted.text.rendering.renderer import Renderer
from flexserve.trusted.text.tokenizer import Marks, Tokenizer

PATIENCE = 20  # seconds


class InsideWorld:
    """An InsideApp, or what `make_app` makes, with a scheduler. `watch` may put something between the two."""

    def __init__(
        self,
        store: Path,
        renderer: Renderer,
        *,
        memory: int = 1 << 16,
        sequences: int = 2,
        inside: bool = False,
        limits: dict[str, Any] | None = None,
        disk: Any = None,
        watch: Any = lambda app: app,
        make_app: Any = InsideApp,
    ) -> None:
        self.played = PlayedApplication(memory, inside=inside)
        self.store = store
        self.limits = ModelLimits(Limits(512, sequences, 1 << 20, **(limits or {})))
        self.sent: queue.SimpleQueue[Any] = queue.SimpleQueue()
        files = SealedFiles(store)
        link = Link(self.played.wire)
        self.disk: Any = disk(self.played, link) if disk is not None else None
        self.app = make_app(*(link, files, renderer, self.limits, self.sent.put), threads=1, disk=self.disk)
        self.watched = watch(self.app)
        self.models = ModelManager(self.watched, idle=3600)
        self.memory = MemoryManager(self.watched, self.models, EvictionPolicy(self.app.chunk))
        self.scheduler = Scheduler(
            *(self.watched, self.models, self.memory, self.sent.put),
            limit=8,
            sequences=sequences,
            patience=600.0,
        )
        self._serial = 0
        self.answers: list[msgspec.Struct] = []  # to what was asked last

    def end(self) -> None:
        """End it. Always safe."""
        self.scheduler.drain(1.0)

    def say(self, prompt: str | ChatPrompt = "hello>", model: str = "a", **how: Any) -> str:
        """Return what is answered. Raises Unanswered. `how`: fields of Sampling, or of Generate."""
        return self.text(self.ask(self.generation(prompt, model, **how)))

    def generation(self, prompt: str | ChatPrompt = "hello>", model: str = "a", **how: Any) -> Generate:
        """Return a request."""
        of_sampling = {key: how.pop(key) for key in list(how) if key in Sampling.__struct_fields__}
        sampling = Sampling(**{"temperature": 0, **of_sampling})
        text = TextPrompt(prompt) if isinstance(prompt, str) else prompt
        return Generate(self.number(), model, text, sampling, **how)

    def warm(self, model: str = "a") -> Finished:
        """Bring a model in."""
        return self.ask(Warm(self.number(), model))

    def number(self) -> int:
        """Return a request's number."""
        self._serial += 1
        return self._serial

    def submit(self, message: Generate | Embed | Convert | Warm | Try) -> None:
        """Ask, and do not wait."""
        self.answers = []
        self.scheduler.submit(self.app.admit(message))

    def ask(self, message: Generate | Embed | Convert | Warm | Try) -> Finished:
        """Ask, and wait for the end. Raises Unanswered."""
        self.submit(message)
        return self.ended()

    def ended(self) -> Finished:
        """Wait for the end of what was asked. Raises Unanswered."""
        while True:
            answer = self.sent.get(timeout=PATIENCE)
            self.answers.append(answer)
            if isinstance(answer, Finished):
                return answer
            if isinstance(answer, Failed):
                raise Unanswered(answer)

    def text(self, _finished: Finished | None = None) -> str:
        """Return the text of the last answer."""
        return "".join(answer.text for answer in self.answers if isinstance(answer, Delta))

    def started(self) -> Started:
        """Return how the last answer began."""
        return next(answer for answer in self.answers if isinstance(answer, Started))

    def converted(self) -> Converted:
        """Return what was converted last."""
        return next(answer for answer in self.answers if isinstance(answer, Converted))

    def recall(self, demand: int | None = None) -> Recalled:
        """Have the OS ask for memory back."""
        return self.memory.answer(Recall(1, demand=demand, deadline=5000))


class ByteVocabulary(Tokenizer):
    """A token for each byte, and one that ends answers."""

    size = END + 1
    marks = Marks()
    gap = None

    def encode(self, text: str, *, special: bool, start: bool = True) -> list[int]:
        return list(text.encode())

    def piece(self, token: int, *, special: bool = False) -> bytes:
        return bytes([token]) if token < END else b""

    def ends(self, token: int) -> bool:
        return token == END

    def attributes(self, token: int) -> int:
        return 0

    def name(self, token: int) -> str:
        return ""

    def metadata(self, key: str) -> object:
        return None


class Unanswered(Exception):
    """A request ended in an error."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.failure.message)
        self.code, self.blame, self.hint = failed.failure.code, failed.failure.blame, failed.failure.hint
