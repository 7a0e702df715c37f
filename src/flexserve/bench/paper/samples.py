"""What was measured: raw figures by cell, and their medians."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable

from flexserve.bench.paper.plan import System
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


class Cells:
    """Cells in the order in which they were first met."""

    def __init__(self) -> None:
        self._cells: dict[tuple[str | int | float, ...], Cell] = {}

    def at(self, **key: str | int | float) -> Cell:
        """Return the cell that `key` names."""
        return self._cells.setdefault(tuple(key.values()), Cell(key))

    def all(self) -> list[Cell]:
        """Return all cells."""
        return list(self._cells.values())


def mean_speedup(cells: Iterable[Cell], over: System) -> float:
    """Return the mean over cells of how many times faster FlexServe was."""
    return statistics.mean(cell.speedup(over) for cell in cells)


def largest_speedup(cells: Iterable[Cell], over: System) -> float:
    """Return the largest of how many times faster FlexServe was."""
    return max(cell.speedup(over) for cell in cells)
