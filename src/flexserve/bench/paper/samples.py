"""What was measured: raw figures by cell, and their medians."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable
from pathlib import Path

import msgspec

from flexserve.bench.paper.plan import Plan, System
from flexserve.errors import CallerError
from flexserve.protocol.answers import Timings

PARTS = ("allocate", "load", "decrypt", "compute", "waited", "hidden")


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One request's way to its first token: seconds."""

    ttft: float
    parts: dict[str, float]

    @classmethod
    def of(cls, timings: Timings, threads: int) -> Request:
        """Read a request's timings; work of `threads` loader threads counts as if they shared it evenly.

        `compute` is the prompt's computation, `waited` what the request stood still for memory, and
        `hidden` the rest of the loaders' work, which was done while it computed.
        """
        work = [part / 1000 / threads for part in (timings.allocate, timings.load, timings.decrypt)]
        waited = timings.restore / 1000
        parts = (*work, timings.prefill / 1000, waited, max(0.0, sum(work) - waited))
        return cls(timings.ttft / 1000, dict(zip(PARTS, parts, strict=True)))


@dataclasses.dataclass(slots=True)
class Cell:
    """One cell of the report: what it is, and per measured_system the requests of all rounds."""

    key: dict[str, str | int | float]
    requests: dict[System, list[Request]] = dataclasses.field(default_factory=dict)

    def add(self, system: System, request: Request) -> None:
        """Note one more request of `system`."""
        self.requests.setdefault(system, []).append(request)

    def seconds(self, system: System) -> float:
        """Return the median time of `system`."""
        return statistics.median(request.ttft for request in self.requests[system])

    def speedup(self, over: System) -> float:
        """Return how many times faster FlexServe was, as the median over rounds of ratios within one."""
        ours, theirs = self.requests[System.FLEXSERVE], self.requests[over]
        return statistics.median(b.ttft / a.ttft for a, b in zip(ours, theirs, strict=True))

    def parts(self, system: System) -> dict[str, float]:
        """Return the median of each part of `system`'s time."""
        found = [request.parts for request in self.requests[system]]
        return {part: statistics.median(parts[part] for parts in found) for part in found[0]}

    def as_json(self) -> dict[str, object]:
        """Return the cell as the report has it."""
        others = [system for system in self.requests if system is not System.FLEXSERVE]
        return {
            **self.key,
            "seconds": {system.value: self.seconds(system) for system in self.requests},
            **{f"speedup_over_{system.value}": self.speedup(system) for system in others},
            "parts": {system.value: self.parts(system) for system in self.requests},
            "samples": {system.value: [r.ttft for r in found] for system, found in self.requests.items()},
        }


@dataclasses.dataclass(slots=True)
class Cells:
    """Cells in the order in which they were first met."""

    found: list[Cell] = dataclasses.field(default_factory=list)

    def at(self, **key: str | int | float) -> Cell:
        """Return the cell that `key` names."""
        cell = next((cell for cell in self.found if cell.key == key), None)
        if cell is None:
            cell = Cell(key)
            self.found.append(cell)
        return cell

    def all(self) -> list[Cell]:
        """Return all cells."""
        return list(self.found)


@dataclasses.dataclass(frozen=True, slots=True)
class Restored:
    """A first token whose prompt found so many per cent of the weights recalled: seconds."""

    prompt: int  # tokens
    recalled: int
    ttft: float
    bound: float  # that no pipeline can beat


@dataclasses.dataclass(slots=True)
class Samples:
    """All that whole rounds of a plan measured, as it lies in a file between two runs."""

    plan: Plan
    rounds: int = 0
    requests: Cells = dataclasses.field(default_factory=Cells)  # by model, prompt, kept
    workflows: Cells = dataclasses.field(default_factory=Cells)  # by workflow
    pipeline: list[Restored] = dataclasses.field(default_factory=list)
    decode: dict[str, dict[System, list[float]]] = dataclasses.field(default_factory=dict)  # tokens a second
    restarted: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # seconds by model

    @classmethod
    def of(cls, plan: Plan, file: Path, *, resume: bool) -> Samples:
        """Return none, or with `resume` those of `file`, if it is there.

        Raises CallerError when they are another plan's.
        """
        if not resume or not file.exists():
            return cls(plan)
        try:
            found = msgspec.json.decode(file.read_bytes(), type=cls)
        except msgspec.MsgspecError:
            found = None
        if found is None or found.plan != plan:
            raise CallerError(
                "What was measured so far is of another plan.",
                hint="Give the options of that run, or leave --resume away.",
            )
        return found


def mean_speedup(cells: Iterable[Cell], over: System) -> float:
    """Return the mean over cells of how many times faster FlexServe was."""
    return statistics.mean(cell.speedup(over) for cell in cells)


def largest_speedup(cells: Iterable[Cell], over: System) -> float:
    """Return the largest of how many times faster FlexServe was."""
    return max(cell.speedup(over) for cell in cells)
