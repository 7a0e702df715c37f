"""A measured_system: a secure world with one of the policies, asked one thing at a time."""

from __future__ import annotations

import time
from types import TracebackType

from flexserve.bench.paper.models import Models
from flexserve.bench.paper.plan import Plan, System
from flexserve.harness.worlds import DrivenWorld
from flexserve.normal.guest import SecureCore
from flexserve.protocol.answers import Finished
from flexserve.protocol.launch import SecureOptions
from flexserve.protocol.prompts import TextPrompt

_TRIES = 8  # recalls until no more is kept than may be


class MeasuredSystem:
    """One system under measurement. A context manager; closing it ends its process.

    Its memory is that of the emulated `machine`, if one is given. `program`: what it is there, if that is
    not what it is here.
    """

    def __init__(
        self,
        system: System,
        plan: Plan,
        models: Models,
        machine: SecureCore | None = None,
        program: tuple[str, ...] | None = None,
    ) -> None:
        self.system = system
        options = SecureOptions(
            models.root,
            models.key,
            "plain" if system is System.NW_BASE else plan.memory,
            threads=plan.threads,
            context=plan.context,
            kv_disk=system.kv_disk,
            chunk=plan.chunk,
        )
        if machine is not None:
            options = machine.secure_options(options)
        self.world = DrivenWorld(options, program=program or system.program)

    def open(self, model: str) -> None:
        """Have `model` open, as a server that was used before has it; and in memory, if it keeps any."""
        self.world.warm(model)
        self.rest()

    def ask(self, model: str, prompt: str, tokens: int, next_model: str | None = None) -> Finished:
        """Continue `prompt` by up to `tokens` tokens, and free what this system frees after a request."""
        number = self.world.submit(model, TextPrompt(prompt), tokens, next_model=next_model)
        finished = self.world.result(number).finished
        self.rest()
        return finished

    def rest(self) -> None:
        """Do what follows a request: the strawmen keep nothing."""
        if not self.system.keeps:
            self.world.recall(None)

    def press(self, limit: int) -> None:
        """Recall until at most `limit` bytes of weights are in memory, as background pressure would."""
        if limit <= 0:
            self.world.recall(None)
        for _ in range(_TRIES):
            excess = self.resident() - limit
            if excess < self.world.welcome.chunk:
                return
            self.world.recall(excess)

    def cap(self, size: int | None) -> None:
        """Have no more than `size` bytes granted from now on (None: no cap), as `flexserve limit` does.

        What is beyond it is recalled, of a system that keeps anything. The page cache, in which NW-Base has
        its weights, is not granted: it is beyond the cap during a call, and pressed down to it here.
        """
        self.world.budget = size
        if self.system is System.NW_BASE and size is not None:
            self.press(size)
        for _ in range(_TRIES):
            if size is None or self.world.granted <= size or not self.system.keeps:
                return
            self.world.recall(self.world.granted - size)

    def resident(self) -> int:
        """Return the bytes of weights that are in memory."""
        return sum(model.resident for model in self.world.status().models)

    def weights(self, model: str) -> int:
        """Return the bytes of the open model's weights."""
        return next(each.weights for each in self.world.status().models if each.name == model)

    def close(self) -> None:
        """End it. Always safe."""
        self.world.close()

    def __enter__(self) -> MeasuredSystem:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def fresh_request(plan: Plan, models: Models, model: str, prompt: str) -> float:
    """Return the seconds from the start of a strawman's process to its first token."""
    began = time.monotonic()
    with MeasuredSystem(System.STRAWMAN, plan, models) as measured_system:
        measured_system.world.generate(model, prompt, 1)
        return time.monotonic() - began
