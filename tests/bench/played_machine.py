"""The machine, models and secure worlds of `bench paper --platform trustzone`, played.

Each part of a measurement asks them what it would ask of the real ones; what they answer follows from what
was asked, as counters of pages do from the pages that were taken.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

import pytest

from flexserve.bench.paper.plan import System
from flexserve.bench.trustzone import calls, memory, npu, npu_use, programs, requests, runner
from flexserve.bench.trustzone.measured_machine import MeasuredMachine
from flexserve.bench.trustzone.plan import Allocator
from flexserve.harness.worlds import Generated
from flexserve.protocol.answers import Finished, Timings, Usage
from flexserve.protocol.launch import SecureOptions

# Nanoseconds of a page.
ALLOCATE = {Allocator.FLEXMEM: 10, Allocator.CMA: 400}
GRANT, SCRUB, MAP, FREE = 20, 100, 10, 30
HUGE = {Allocator.FLEXMEM: 9, Allocator.CMA: 0}  # the order of the blocks that pages come in
WEIGHTS = 1 << 20


class PlayedMachine:
    """A machine whose driver counts what its secure core takes, and whose programs run at once."""

    ram_bytes = 1 << 29
    npu_driver = b"driver"

    def __init__(self, allocator: Allocator) -> None:
        self.allocator, self.agent, self.protected = allocator, self, True
        self.counted: Counter[str] = Counter({f"order{order}": 0 for order in range(10)})
        self.counted.update(
            {f"{part}_ns": 0 for part in ("allocate", "grant", "take", "free", "poll", "wait")}
        )
        self.npu: Counter[str] = Counter(jobs=0, launch_ns=0, grants=0, grant_ns=0, backs=0, ours=1)

    def ask(self, *words: str, seconds: float = 0) -> dict[str, Any]:
        """Answer as the agent in the guest."""
        match words:
            case ("flexmem",):
                return {"held": 0, **self.counted}
            case ("flexnpu",):
                return dict(self.npu)
            case ("attack", "cost", what, *numbers):
                pages = int(numbers[-1]) if what == "grant" else 1
                return {"status": 0, "ns": 1000 + 9 * pages, "return_ns": 5 * pages, "off_ns": 8, "on_ns": 9}
            case ("run", "npu", "multiply", *_, times):
                self.npu.update(jobs=int(times), launch_ns=700 * int(times))
            case ("start", *_):
                self.npu.update(jobs=1)
                return {"job": 1}
        return {"status": 0, "running": False, "result": {"per_second": 50.0}}

    def secure_options(self, options: SecureOptions) -> SecureOptions:
        return SecureOptions(options.store, options.device_key, npu_driver=self.npu_driver)

    def reset_secure_core(self) -> None:
        """End the secure world: it held nothing."""


class PlayedMeasuredMachine(MeasuredMachine):
    """One that boots at once; protection is what it was switched to."""

    machine: Any

    @classmethod
    @contextlib.contextmanager
    def set(cls, plan: Any, allocator: Allocator, *_: Any, **_how: Any) -> Iterator[PlayedMeasuredMachine]:
        made = cls.__new__(cls)
        made.machine = PlayedMachine(allocator)
        yield made

    def switch_off(self) -> None:
        self.machine.protected = False

    def switch_on(self) -> None:
        self.machine.protected = True

    @property
    def protected(self) -> bool:
        return self.machine.protected

    @contextlib.contextmanager
    def background(self, percent: int) -> Iterator[None]:
        yield

    def moved(self) -> int:
        return 0

    @contextlib.contextmanager
    def secure_core(self) -> Iterator[Any]:
        yield PlayedPages(self.machine)

    @staticmethod
    def wait(condition: Callable[[], bool], otherwise: str) -> None:
        assert condition(), otherwise


class PlayedPages:
    """The pages of the secure core: the driver counts each that comes and goes."""

    def __init__(self, machine: PlayedMachine) -> None:
        self._machine, self._unused = machine, 0

    def start(self) -> None:
        """Begin: nothing is held."""

    def want(self, least: int, most: int) -> int:
        self._come(most)
        self._unused += most
        return most

    def take(self, count: int) -> list[tuple[int, int]]:
        if self._unused >= count:
            self._unused -= count
        else:
            self._come(count)
        self._machine.counted.update(poll_ns=7 * count)
        return [(0, count)]

    def give_back(self, runs: Sequence[tuple[int, int]]) -> None:
        for _, count in runs:
            self._machine.counted.update(take_ns=SCRUB * count, free_ns=FREE * count, poll_ns=9 * count)

    def trim(self, left: int) -> None:
        self._machine.counted.update(take_ns=MAP * self._unused, free_ns=FREE * self._unused)
        self._unused = left

    def _come(self, count: int) -> None:
        machine = self._machine
        machine.counted.update(allocate_ns=ALLOCATE[machine.allocator] * count, grant_ns=GRANT * count)
        machine.counted[f"order{HUGE[machine.allocator]}"] += count


class PlayedNpuClient:
    """The secure side of the NPU: it comes and goes, and the drivers count it."""

    def __init__(self, pages: Any, driver: bytes) -> None:
        self._machine = pages._machine

    def borrow(self) -> float:
        self._machine.npu.update(grants=1, grant_ns=300_000)
        return 0.001

    def launch(self) -> float:
        return 0.0001

    def give_back(self) -> float:
        self._machine.npu.update(backs=1)
        self._machine.counted.update(wait_ns=400_000)
        return 0.002


class PlayedModels:
    """Models that are nothing but names."""

    def __init__(self, folder: Path, say: Any) -> None:
        self.root, self.key = folder / "store", folder / "device.key"

    def make(
        self, shape: str, quant: str, lengths: Sequence[int], _threads: int
    ) -> tuple[str, dict[int, str]]:
        return f"{shape}-{quant}", {length: "word " * length for length in lengths}


class PlayedWorld:
    """A secure world that computes at once, faster with an NPU."""

    def __init__(self, options: SecureOptions) -> None:
        self._npu = bool(options.npu_driver)

    def __enter__(self) -> PlayedWorld:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""

    def warm(self, _model: str) -> None:
        """Have the weights in memory."""

    def generate(self, _model: str, prompt: str, tokens: int) -> Generated:
        timings = Timings(prefill=2 if self._npu else 5, npu_products=14 * self._npu, ttft=6)
        return Generated(prompt[:tokens], Finished(1, "length", Usage(len(prompt), tokens), timings))

    def status(self) -> Any:
        return SimpleNamespace(npu=SimpleNamespace(held=20))


class PlayedSystem:
    """One of the paper's systems: what it keeps is what its policy keeps."""

    def __init__(self, system: System, _plan: Any, _models: Any, _machine: Any) -> None:
        self.system, self.world, self._resident = system, self, 0

    def __enter__(self) -> PlayedSystem:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""

    def open(self, _model: str) -> None:
        self._resident = WEIGHTS * self.system.keeps

    warm = open

    def recall(self, size: int | None) -> None:
        self._resident = 0 if size is None else max(0, self._resident - size)

    def press(self, limit: int) -> None:
        self._resident = min(self._resident, limit)

    def weights(self, _model: str) -> int:
        return WEIGHTS

    def ask(self, model: str, prompt: str, tokens: int, next_model: str | None = None) -> Finished:
        lacking = WEIGHTS - self._resident
        slow = 1 if self.system.keeps else 3
        timings = Timings(
            restore=slow * lacking / WEIGHTS * 9,
            allocate=slow * lacking / WEIGHTS * 4,
            prefill=2,
            ttft=2 + slow * lacking / WEIGHTS * 9,
            decode=tokens,
        )
        self.open(model)
        return Finished(1, "length", Usage(len(prompt), tokens), timings)


def play(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the measurement ask these in place of the real ones."""
    for module in (memory, calls, programs, requests, npu, npu_use):
        monkeypatch.setattr(module, "MeasuredMachine", PlayedMeasuredMachine)
    for module in (programs, npu_use):
        monkeypatch.setattr(module, "DrivenWorld", PlayedWorld)
    monkeypatch.setattr(requests, "MeasuredSystem", PlayedSystem)
    monkeypatch.setattr(npu, "SecureNpuClient", PlayedNpuClient)
    monkeypatch.setattr(runner, "Models", PlayedModels)
