"""A server's memory and models, looked at once a second for all who watch, and never while nobody does."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from typing import TYPE_CHECKING

from flexserve.errors import FlexServeError, QueueFullError
from flexserve.normal.supervisor import WorldState

if TYPE_CHECKING:
    from flexserve.normal.world import World, WorldReport

PERIOD = 1.0  # seconds from one look to the next
_ABSENT = 0.2  # … while there is no secure world: that it is back, or that the server ends, shows soon
MAX_WATCHERS = 32
MAX_SAMPLES = 600


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One look at a server. `report` is None while there is no secure world, and `failure` says why."""

    number: int  # 1, 2, 3 …
    at: float  # seconds since the epoch
    state: WorldState
    report: WorldReport | None
    failure: FlexServeError | None

    @property
    def last(self) -> bool:
        """Whether none comes after it: the server ends."""
        return self.state in (WorldState.STOPPED, WorldState.FAILED)


class Sampler:
    """Looks at `world` every `period` seconds for as long as anybody watches. One event loop.

    The last MAX_SAMPLES are kept: who comes back misses only what happened while nobody watched.
    """

    def __init__(self, world: World, *, period: float = PERIOD) -> None:
        self._world, self._period = world, period
        self._samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)
        self._number = 0
        self._watchers = 0
        self._looking: asyncio.Task[None] | None = None
        self._news = asyncio.Condition()

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The last samples, oldest first."""
        return tuple(self._samples)

    def enter(self) -> None:
        """Begin to watch; `leave` ends it. Raises QueueFullError where MAX_WATCHERS watch already."""
        if self._watchers >= MAX_WATCHERS:
            raise QueueFullError("Too many watch this server.", hint="Close a page that shows it.")
        self._watchers += 1
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._go_on_looking(), name="sampler")

    def leave(self) -> None:
        """Watch no longer."""
        self._watchers -= 1
        if not self._watchers and self._looking is not None:
            self._looking.cancel()
            self._looking = None

    async def newer_than(self, number: int) -> Sample:
        """Return the newest sample once it has a number above `number`. For those who watch.

        Who is slow to ask misses samples; nothing waits for it.
        """
        async with self._news:
            await self._news.wait_for(lambda: self._number > number)
            return self._samples[-1]

    async def look(self) -> Sample:
        """Take a sample now and return it. It asks the secure world, and wakes no model."""
        report = failure = None
        try:
            report = await self._world.report()
        except FlexServeError as error:
            failure = error
        async with self._news:
            self._number += 1
            sample = Sample(self._number, time.time(), self._world.state, report, failure)
            self._samples.append(sample)
            self._news.notify_all()
        return sample

    async def _go_on_looking(self) -> None:
        while not (sample := await self.look()).last:
            await asyncio.sleep(self._period if sample.report is not None else _ABSENT)
