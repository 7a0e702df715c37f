"""What programs of the normal world keep of their speed: protection off, on and idle, and while inferring."""

from __future__ import annotations

import contextlib
import enum
import statistics
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flexserve.bench.paper.models import Models
from flexserve.bench.paper.requests import Subject
from flexserve.bench.trustzone.measured_machine import MeasuredMachine, Say
from flexserve.bench.trustzone.plan import Allocator, Plan, Program
from flexserve.errors import InternalError
from flexserve.harness.worlds import DrivenWorld
from flexserve.protocol.launch import SecureOptions

_TOKENS = 32  # of an answer, of which one follows the other
_MARGIN = 60.0  # seconds beyond those that a program runs


class Condition(enum.Enum):
    """What goes on beside a program. Values are the names in the report."""

    OFF = "off"  # Stage-2 does not translate
    IDLE = "idle"  # it does, and nobody uses it
    INFERRING = "inferring"  # the secure world computes on the machine's pages, on the same host cores


class Programs:
    """Measures, and keeps operations a second by program and condition."""

    def __init__(self, plan: Plan, models: Models, say: Say) -> None:
        self._plan, self._models, self._say = plan, models, say
        self._samples: dict[str, dict[Condition, list[float]]] = {}

    def round(self, subject: Subject, number: int) -> None:
        """Run every program once under each condition; another condition begins in each round."""
        turn = number % len(Condition)
        order = [*list(Condition)[turn:], *list(Condition)[:turn]]
        with MeasuredMachine.set(self._plan, Allocator.FLEXMEM, self._say) as measured:
            for condition in order:
                self._say(f"round {number + 1}: programs, protection {condition.value}")
                with self._brought_about(measured, condition, subject):
                    for program in self._plan.programs:
                        self._run(measured, program, condition)
                    if measured.protected is (condition is Condition.OFF):
                        raise InternalError("Protection was switched meanwhile.", hint="Report this.")

    @contextlib.contextmanager
    def _brought_about(
        self, measured: MeasuredMachine, condition: Condition, subject: Subject
    ) -> Iterator[None]:
        if condition is Condition.OFF:
            measured.switch_off()
        else:
            measured.switch_on()
        with (
            self._inferring(measured, subject)
            if condition is Condition.INFERRING
            else contextlib.nullcontext()
        ):
            yield

    @contextlib.contextmanager
    def _inferring(self, measured: MeasuredMachine, subject: Subject) -> Iterator[None]:
        """Have a secure world generate text without a pause, with one thread: the guest needs a core, too."""
        paper, machine = self._plan.requests, measured.machine
        options = SecureOptions(self._models.root, self._models.key, threads=1, context=paper.context)
        ended = threading.Event()

        def infer(world: DrivenWorld) -> None:
            while not ended.is_set():
                world.generate(subject.model, subject.prompts[paper.call_prompt], _TOKENS)

        with DrivenWorld(machine.secure_options(options)) as world:
            world.warm(subject.model)
            with ThreadPoolExecutor(1, "inferring") as pool:
                inferring = pool.submit(infer, world)
                try:
                    yield
                finally:
                    ended.set()
                inferring.result()
        machine.reset_secure_core()
        measured.wait_until_free()

    def _run(self, measured: MeasuredMachine, program: Program, condition: Condition) -> None:
        words = program.words(self._plan.seconds)
        done = measured.machine.agent.ask("run", *words, seconds=self._plan.seconds + _MARGIN)
        if done["status"] != 0:
            raise InternalError(f"The guest's {program.name} failed: {done}.", hint="Report this.")
        by_condition = self._samples.setdefault(program.name, {each: [] for each in Condition})
        by_condition[condition].append(done["result"]["per_second"])

    def report(self) -> dict[str, Any]:
        """Return the speed of each program and what is kept of it: medians of ratios within a round."""
        cells = []
        for name, found in self._samples.items():
            kept = {
                each.value: statistics.median(
                    now / off for now, off in zip(found[each], found[Condition.OFF], strict=True)
                )
                for each in (Condition.IDLE, Condition.INFERRING)
            }
            speeds = {each.value: statistics.median(samples) for each, samples in found.items()}
            samples = {each.value: samples for each, samples in found.items()}
            cells.append({"program": name, "per_second": speeds, "kept": kept, "samples": samples})
        return {"cells": cells}
