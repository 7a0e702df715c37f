"""A restore under way: a plan, how far the loaders are with it, and what it cost."""

from __future__ import annotations

import dataclasses

from flexserve.protocol.answers import Timings
from flexserve.trusted.weights.chunks import Weights
from flexserve.trusted.weights.fill import Cost
from flexserve.trusted.weights.plan import RestorePlan
from flexserve.trusted.weights.states import ABSENT, RESIDENT, ChunkEvent


@dataclasses.dataclass(slots=True)
class RestoreStats:
    """What restoring cost a request. Seconds and bytes."""

    waited: float = 0.0  # wall time compute stood still for memory
    # Time of loader threads, most of it hidden behind compute:
    allocate: float = 0.0  # getting memory: grants, places, pages
    load: float = 0.0  # reading ciphertext
    decrypt: float = 0.0
    restored: int = 0
    npu_products: int = 0  # not of restoring: what else the same graphs tell of themselves

    def add(self, cost: Cost) -> None:
        """Count one chunk."""
        self.allocate += cost.allocate
        self.load += cost.load
        self.decrypt += cost.decrypt
        self.restored += cost.size

    def timings(
        self, *, queue: float = 0.0, prefill: float = 0.0, decode: float = 0.0, ttft: float = 0.0
    ) -> Timings:
        """Return the timings of a request that this restore was for; all in seconds."""
        return Timings(
            queue=_ms(queue),
            restore=_ms(self.waited),
            allocate=_ms(self.allocate),
            load=_ms(self.load),
            decrypt=_ms(self.decrypt),
            prefill=_ms(prefill),
            decode=_ms(decode),
            ttft=_ms(ttft),
            restored_bytes=self.restored,
            npu_products=self.npu_products,
        )

    def include(self, other: RestoreStats) -> None:
        """Add what another restore cost."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class RestoreJob:
    """One plan being followed by the loaders. Fields change only under the loader's lock."""

    def __init__(self, weights: Weights, plan: RestorePlan, stats: RestoreStats, start: int) -> None:
        self.weights, self.plan, self.stats = weights, plan, stats
        self.epoch = weights.table.epoch  # of the states that the plan was made from
        self.position = start  # node that compute has reached
        self.next = 0  # index in plan.order of the next chunk to load …
        self.end = len(plan.order)  # … and where to stop
        self.done = 0  # plan.order[:done] is resident
        self.waiting = False  # compute stands still until plan.order[:goal] is resident
        self.goal = 0
        self.error: BaseException | None = None
        self.short = False  # of memory: loaders wait for compute to pass what they can use
        self.stale = False  # a recall took something: make a new plan

    @property
    def loadable(self) -> bool:
        """Whether there may be a chunk left for a loader to take."""
        return self.error is None and self.next < self.end

    @property
    def idle(self) -> bool:
        """Whether nothing is left to load."""
        return self.error is not None or self.done >= self.end

    @property
    def stopped(self) -> bool:
        """Whether compute stands still, and will until more is resident."""
        return self.waiting and self.done < self.goal

    @property
    def least(self) -> int:
        """How many chunks compute needs together for the node that it has reached."""
        needed = self.plan.order[: self.plan.wanted(self.position)]
        return sum(self.plan.last_use[chunk] >= self.position for chunk in needed)

    def advance(self) -> None:
        """Move `done` over what is resident by now."""
        states, order = self.weights.states, self.plan.order
        while self.done < len(order) and states[order[self.done]] == RESIDENT:
            self.done += 1

    @property
    def ahead(self) -> int:
        """How many places of the order there are to come, up to what compute waits for if it does."""
        return (self.goal if self.waiting and self.next < self.goal else self.end) - self.next

    def take(self, most: int) -> list[int]:
        """Claim `most` absent chunks; return their places in the order. [] when there is none."""
        states, order = self.weights.states, self.plan.order
        taken: list[int] = []
        while self.next < self.end and len(taken) < most:
            position, self.next = self.next, self.next + 1
            if states[order[position]] == ABSENT:
                self.weights.table.move(ChunkEvent.CLAIM, order[position])
                taken.append(position)
        if not taken:
            self.advance()
        return taken

    def record(
        self, position: int, cost: Cost | None, error: BaseException | None, *, followed: bool
    ) -> bool:
        """Record that a chunk was filled at `cost`, failed with `error`, or (neither) had to wait for memory.

        `followed`: loaders still follow this job. Returns whether nobody wants the chunk that was filled.
        """
        needed = position < self.plan.needed
        if cost is not None:
            self.stats.add(cost)
        elif error is not None and needed:
            self.error = self.error or error
        elif followed and not needed:
            self.end = self.plan.needed  # only the luxury of having all failed; who needs it will see
        elif followed:
            self.next = self.done  # memory is so short that what is needed first goes first
        return cost is not None and self.unwanted(position)

    def unwanted(self, position: int) -> bool:
        """Return whether nobody wants a chunk that was claimed, now that it is filled.

        What a recall found claimed goes with the rest, unless a request waits for it.
        """
        return self.stale and position >= self.plan.needed

    @property
    def lacking(self) -> int:
        """How many chunks that the graph reads are not in memory."""
        states = self.weights.states
        return sum(states[chunk] != RESIDENT for chunk in self.plan.order[: self.plan.needed])

    def early(self) -> int | None:
        """Return the resident chunk that was loaded longest before its turn, if compute can do without."""
        states, order = self.weights.states, self.plan.order
        later = range(len(order) - 1, max(self.done, self.goal - 1), -1)
        return next((order[i] for i in later if states[order[i]] == RESIDENT), None)


def _ms(seconds: float) -> float:
    return max(0.0, seconds * 1000)
