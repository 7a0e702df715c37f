"""Both worlds at one NPU: what the guest's program keeps, and what prompts gain in the secure world."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from flexserve.bench.paper.models import Models
from flexserve.bench.paper.requests import Subject
from flexserve.bench.trustzone.measured_machine import MeasuredMachine, Say
from flexserve.bench.trustzone.plan import Allocator, Plan
from flexserve.errors import InternalError
from flexserve.harness.worlds import DrivenWorld, Generated
from flexserve.protocol.launch import SecureOptions

_VISION = ("npu", "vision")  # a program of the guest; its seconds
_MARGIN = 60.0  # seconds beyond those that a program runs
_ENGINES = ("cpu", "npu")
_UNDISTURBED = 3  # prompts computed while the guest leaves the NPU alone


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """What became of the prompts of one length."""

    seconds: dict[str, list[float]]  # that they were computed in, by engine
    products: list[int]  # that the NPU computed of each
    same: list[bool]  # whether the answers with and without it were

    def as_json(self, length: int) -> dict[str, Any]:
        """Return it with medians."""
        seconds = {engine: statistics.median(found) for engine, found in self.seconds.items()}
        return {
            "prompt": length,
            "seconds": seconds,
            "gain": seconds["cpu"] / seconds["npu"],
            "npu_products": statistics.median(self.products),
            "same_answers": all(self.same),
            "samples": self.seconds,
        }


class NpuUse:
    """Measures, and keeps `prompts` by length, `speeds` of the guest's program, and `shares`."""

    def __init__(self, plan: Plan, models: Models, say: Say) -> None:
        self._plan, self._models, self._say = plan, models, say
        self.prompts = {
            length: Prompt({engine: [] for engine in _ENGINES}, [], []) for length in plan.npu.prompts
        }
        self.speeds: dict[str, list[float]] = {}
        self.shares: dict[str, list[float]] = {}

    def round(self, subject: Subject, number: int) -> None:
        """Measure everything once, on one machine; another engine begins in each round."""
        with MeasuredMachine.set(self._plan, Allocator.FLEXMEM, self._say, npu=True) as measured:
            self._say(f"round {number + 1}: prompts with and without the NPU")
            engines = _ENGINES if number % 2 == 0 else tuple(reversed(_ENGINES))
            answers = {engine: self._ask_all(measured, subject, engine) for engine in engines}
            for length, prompt in self.prompts.items():
                prompt.same.append(answers["cpu"][length] == answers["npu"][length])
            self._say(f"round {number + 1}: both worlds at the NPU")
            for _ in range(self._plan.npu.turns):
                self._share(measured, subject)

    # ---- prompts ----------------------------------------------------------------------------------

    def _ask_all(self, measured: MeasuredMachine, subject: Subject, engine: str) -> dict[int, str]:
        """Measure every prompt once, all weights in memory; return the answers."""
        answers = {}
        with self._world(measured, self._plan.requests.threads, npu=engine == "npu") as world:
            world.warm(subject.model)
            self._prepare(measured, world, subject, engine)
            for length, prompt in self.prompts.items():
                generated = self._generate(world, subject, length)
                timings = generated.finished.timings
                prompt.seconds[engine].append(timings.prefill / 1000)
                if engine == "npu":
                    prompt.products.append(timings.npu_products)
                answers[length] = generated.text
        return answers

    def _prepare(self, measured: MeasuredMachine, world: DrivenWorld, subject: Subject, engine: str) -> None:
        """Have prompts computed that are not measured: the first, and those before the NPU came."""

        def computed() -> bool:
            timings = self._generate(world, subject, self._plan.npu.prompts[0]).finished.timings
            return engine == "cpu" or timings.npu_products > 0

        measured.wait(computed, "The NPU does not come to the secure world.")

    def _generate(self, world: DrivenWorld, subject: Subject, length: int) -> Generated:
        return world.generate(subject.model, subject.prompts[length], self._plan.npu.tokens)

    @contextlib.contextmanager
    def _world(self, measured: MeasuredMachine, threads: int, *, npu: bool) -> Iterator[DrivenWorld]:
        machine, context = measured.machine, self._plan.requests.context
        options = SecureOptions(self._models.root, self._models.key, threads=threads, context=context)
        options = machine.secure_options(options)
        if not npu:
            options = msgspec.structs.replace(options, npu_driver=b"")
        with DrivenWorld(options) as world:
            yield world
        machine.reset_secure_core()
        measured.wait_until_free()

    # ---- shares -----------------------------------------------------------------------------------

    def _share(self, measured: MeasuredMachine, subject: Subject) -> None:
        """Run the guest's program alone, beside a secure world that is idle, and beside one that is busy."""
        measured.switch_off()
        self._note_speed("alone", self._vision(measured))
        # One thread: the guest needs a core of the host, too.
        with self._world(measured, 1, npu=True) as world:
            world.warm(subject.model)
            self._infer(world, subject)  # what is measured is not the first
            undisturbed = statistics.median(self._infer(world, subject) for _ in range(_UNDISTURBED))
            measured.wait(lambda: measured.npu_counters()["ours"] == 1, "An idle secure world keeps the NPU.")
            self._note_speed("idle", self._vision(measured))
            with self._inferring(world, subject) as prefills:
                self._note_speed("busy", self._contend(measured, world))
            if prefills:
                kept = undisturbed / statistics.median(prefills)
                self.shares.setdefault("prefill_kept", []).append(kept)

    def _vision(self, measured: MeasuredMachine) -> float:
        """Run the program to its end; return its operations a second."""
        done = measured.machine.agent.ask(
            "run", *_VISION, self._seconds, seconds=_MARGIN + self._plan.seconds
        )
        return _speed(done)

    @property
    def _seconds(self) -> str:
        return str(self._plan.seconds)

    def _contend(self, measured: MeasuredMachine, world: DrivenWorld) -> float:
        """Run the program beside a busy secure world, and note who had the NPU for how long meanwhile."""
        agent, before = measured.machine.agent, measured.npu_counters()["jobs"]
        job = str(agent.ask("start", *_VISION, self._seconds)["job"])
        measured.wait(
            lambda: measured.npu_counters()["jobs"] > before, "The guest's program does not get the NPU."
        )
        began, held = time.monotonic(), _held(world)
        time.sleep(self._plan.seconds / 2)
        secure = (_held(world) - held) / (time.monotonic() - began)
        done: dict[str, Any] = {"running": True}

        def ended() -> bool:
            done.update(agent.ask("job", job))
            return not done["running"]

        measured.wait(ended, "The guest's program does not end.")
        self.shares.setdefault("secure_time", []).append(secure)
        return _speed(done)

    @contextlib.contextmanager
    def _inferring(self, world: DrivenWorld, subject: Subject) -> Iterator[list[float]]:
        """Have prompts computed without a pause; the seconds of each come into the list."""
        over, prefills = threading.Event(), list[float]()

        def infer() -> None:
            while not over.is_set():
                prefills.append(self._infer(world, subject))

        with ThreadPoolExecutor(1, "inferring") as pool:
            inferring = pool.submit(infer)
            try:
                yield prefills
            finally:
                over.set()
            inferring.result()

    def _infer(self, world: DrivenWorld, subject: Subject) -> float:
        prompt = subject.prompts[self._plan.npu.prompts[-1]]
        return world.generate(subject.model, prompt, 1).finished.timings.prefill / 1000

    def _note_speed(self, name: str, speed: float) -> None:
        self.speeds.setdefault(name, []).append(speed)

    # ---- the report -------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """Return medians; of speeds those of ratios within a turn."""
        return {
            "prefill": [prompt.as_json(length) for length, prompt in self.prompts.items()],
            "share": {
                "per_second": {name: statistics.median(found) for name, found in self.speeds.items()},
                "kept": {name: self._kept(name) for name in ("idle", "busy")},
                **{name: statistics.median(found) for name, found in self.shares.items()},
                "samples": {**self.speeds, **self.shares},
            },
        }

    def _kept(self, name: str) -> float:
        pairs = zip(self.speeds[name], self.speeds["alone"], strict=True)
        return statistics.median(speed / alone for speed, alone in pairs)


def _speed(done: dict[str, Any]) -> float:
    if done["status"] != 0:
        raise InternalError(f"The guest's use of the NPU failed: {done}.", hint="Report this.")
    return float(done["result"]["per_second"])


def _held(world: DrivenWorld) -> float:
    """Return the seconds that the secure world had the NPU for."""
    npu = world.status().npu
    if npu is None:
        raise InternalError("The secure world knows no NPU.", hint="Report this.")
    return npu.held / 1000
