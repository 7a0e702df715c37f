"""Trials of settings: each is simulated on every load, in worker processes that may die.

A trial depends on its settings and the loads alone. So who computes it, and when, changes nothing, and
one whose worker died is computed again by another.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool

from flexserve.bench.tuning.knobs import Values, settings
from flexserve.errors import InternalError
from flexserve.simulator.host import Host, Outcome, mean
from flexserve.simulator.load import Load

OBJECTIVES = ("first_token", "kept", "slowdown")  # fields of Outcome; less is better
_DEATHS = 20  # of workers; more are no accident

Judge = Callable[[Values], Outcome]
Progress = Callable[[float, float], None]  # hours simulated, and those per second


@dataclasses.dataclass(frozen=True, slots=True)
class Simulated:
    """Judges settings by what comes of `loads` on simulated hosts."""

    loads: tuple[Load, ...]

    def __call__(self, values: Values) -> Outcome:
        """Return the mean over all loads."""
        return mean([Host(load, settings(values, load.memory)).run() for load in self.loads])


def objectives(outcome: Outcome) -> tuple[float, ...]:
    """Return what is to be made least."""
    return tuple(getattr(outcome, name) for name in OBJECTIVES)


class Workers:
    """Processes that judge settings. A context manager; `progress` is told after each trial."""

    def __init__(self, judge: Judge, count: int, progress: Progress) -> None:
        self._judge, self._count, self._progress = judge, count, progress
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None
        self._deaths = 0
        self._began, self._hours = time.monotonic(), 0.0

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def outcomes(self, batch: Sequence[Mapping[str, float]]) -> list[Outcome]:
        """Return what came of each of `batch`, in its order. What a dead worker had is computed again.

        Raises InternalError when workers keep dying.
        """
        found: dict[int, Outcome] = {}
        while len(found) < len(batch):
            missing = [index for index in range(len(batch)) if index not in found]
            try:
                for index, outcome in self._some(missing, batch):
                    found[index] = outcome
                    self._hours += outcome.hours
                    self._progress(self._hours, self._hours / max(time.monotonic() - self._began, 1e-9))
            except BrokenProcessPool:
                self._pool = None
                self._deaths += 1
                if self._deaths > _DEATHS:
                    raise InternalError("The processes that simulate keep dying.") from None
        return [found[index] for index in range(len(batch))]

    def _some(
        self, indices: Iterable[int], batch: Sequence[Mapping[str, float]]
    ) -> Iterator[tuple[int, Outcome]]:
        if self._pool is None:
            self._pool = concurrent.futures.ProcessPoolExecutor(
                self._count, multiprocessing.get_context("spawn"), _begin, (self._judge,)
            )
        futures = {self._pool.submit(_judge, dict(batch[index])): index for index in indices}
        for future in concurrent.futures.as_completed(futures):
            yield futures[future], future.result()


# ---- in a worker

_judging: list[Judge] = []  # the judge of this process, sent once: loads are large


def _begin(judge: Judge) -> None:
    _judging[:] = [judge]
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the end of the process that gave us our work, killed or not, and end."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _judge(values: Values) -> Outcome:
    return _judging[0](values)
