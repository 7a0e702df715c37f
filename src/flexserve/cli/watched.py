"""What is known of a server that is watched: its events, put together."""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import TypeVar

from flexserve.normal.reports import (
    Decision,
    Event,
    NewDecisions,
    NewRequests,
    Past,
    Point,
    Present,
    RequestLine,
)

_MOST_POINTS = 600
_MOST_LINES = 64

Line = TypeVar("Line", Decision, RequestLine)


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """A kind of memory, as it is drawn. `ours`: FlexServe has it. `always`: it is named though it is 0."""

    name: str
    colour: str
    glyph: str
    ours: bool = True
    always: bool = True


KINDS = (  # from the bottom of a chart upwards; they add up to the machine's memory
    Kind("weights", "#4f7fe8", "W"),
    Kind("KV", "#12a08c", "K"),
    Kind("scratch", "#eba02e", "S"),
    Kind("unused", "#b7c6ea", "u", always=False),
    Kind("process", "#8f84c9", "p", always=False),
    Kind("others", "grey46", ":", ours=False),
    Kind("free", "grey27", ".", ours=False),
)


def parts_of(point: Point) -> dict[str, int]:
    """Return the bytes of each of KINDS at `point`, by name."""
    weights, kv, scratch = (sum(sizes[kind] for sizes in point.models.values()) for kind in range(3))
    unused = point.unused + point.recalling
    held = weights + kv + scratch + unused
    process = max(0, point.secure_rss - held)
    others = max(0, point.total - point.available - held - process)
    free = max(0, point.total - held - process - others)
    sizes = (weights, kv, scratch, unused, process, others, free)
    return {kind.name: size for kind, size in zip(KINDS, sizes, strict=True)}


class Watched:
    """What a watcher knows. `gone`: the server does not answer any more, and what is known may be old."""

    def __init__(self) -> None:
        self.present: Present | None = None
        self.points: deque[Point] = deque(maxlen=_MOST_POINTS)
        self.decisions: dict[int, Decision] = {}
        self.requests: dict[int, RequestLine] = {}
        self.gone = False

    def take(self, event: Event) -> None:
        """Add what `event` tells."""
        self.gone = False
        match event:
            case Past():  # of a server that may be another one
                self.points.clear()
                self.points.extend(event.points)
                self.decisions.clear()
                self.requests.clear()
            case Present():
                self._take_present(event)
            case NewDecisions():
                _add(self.decisions, event.decisions)
            case NewRequests():
                _add(self.requests, event.requests)

    def _take_present(self, now: Present) -> None:
        self.present = now
        if now.os is None or now.memory is None:
            return
        if self.points and self.points[-1].at >= now.at:  # the history has this look, too
            return
        models = {model.name: (model.resident, model.kv, model.scratch) for model in now.models}
        counted, memory = now.os, now.memory
        point = Point(
            *(now.at, counted.total, counted.available, counted.secure_rss),
            unused=memory.unused,
            recalling=memory.recalling,
            models=models,
        )
        self.points.append(point)


def _add(known: dict[int, Line], lines: list[Line]) -> None:
    known.update({line.number: line for line in lines})
    for number in sorted(known)[:-_MOST_LINES]:
        del known[number]
