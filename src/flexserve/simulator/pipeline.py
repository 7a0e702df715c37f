"""Bringing a model in and computing a prompt on the simulated machine, overlapped or not.

Pages are allocated (CPU), ciphertext is read into them (flash), they are protected and decrypted
(CPU), and each layer runs when its chunks are there. flexserve.trusted.weights.plan says in which
order, and how far compute may go.
"""

from __future__ import annotations

import dataclasses

from flexserve.simulator.designs import Costs, Design
from flexserve.simulator.events import Process, Signal, Simulation, Unit
from flexserve.simulator.weights import SimRestore, SimWeights

_AHEAD = 4  # chunks allocated before their ciphertext is read


@dataclasses.dataclass(slots=True)
class Parts:
    """The work that a first token takes, in seconds of its unit. What overlaps counts in full."""

    prepare: float = 0.0  # allocation before anything else
    allocate: float = 0.0
    load: float = 0.0
    protect: float = 0.0
    decrypt: float = 0.0
    compute: float = 0.0
    other: float = 0.0  # switches, launches, a framework that starts: nothing of it overlaps

    @property
    def work(self) -> float:
        """Seconds that it would take one step after the other."""
        overlapping = self.allocate + self.load + self.protect + self.decrypt + self.compute
        return self.prepare + overlapping + self.other

    @property
    def bound(self) -> float:
        """Seconds that no pipeline can beat: the longer of restore alone and compute alone."""
        restore = max(self.load, self.allocate + self.protect + self.decrypt)
        return max(restore, self.prepare + self.compute + self.other)


class Pipeline:
    """The units of one machine, and what is done with them."""

    def __init__(self, simulation: Simulation, design: Design) -> None:
        self._simulation, self._design = simulation, design
        self.flash, self.cpu, self.engine = Unit(simulation), Unit(simulation), Unit(simulation)
        self._changed = Signal(simulation)  # a chunk was allocated or restored

    def run(
        self,
        weights: SimWeights,
        taken: list[int],
        costs: Costs,
        prompt: int,
        parts: Parts,
        *,
        streamed: int = 0,
    ) -> Process:
        """Restore the chunks `taken` (those that memory was just taken for) and compute the prompt.

        Adds to `parts`. Waits for chunks that another restore has claimed. The last `streamed` bytes of the
        model have no memory: they pass through what others will not miss.
        """
        restore = SimRestore(weights)
        compute = prompt * costs.prefill
        parts.compute += compute * (1 + self._design.slowdown)
        parts.other += self._design.pass_overhead
        if self._design.pipelined:
            self.restore(weights, taken, costs, parts)
        else:
            yield from self._restore_whole(weights, taken, costs, parts)
        yield from self.engine.use(self._design.pass_overhead)
        yield from self._compute(
            restore, compute * (1 + self._design.slowdown), streamed, streamed * costs.stream
        )

    def restore(self, weights: SimWeights, chunks: list[int], costs: Costs, parts: Parts) -> None:
        """Begin to restore `chunks`, stage overlapping stage. Adds to `parts`."""
        size = sum(weights.size(chunk) for chunk in chunks)
        parts.load += size * costs.load
        parts.protect += size * costs.protect
        parts.decrypt += size * costs.decrypt
        allocated = _Count()
        if self._design.whole:
            allocated.value = len(chunks)  # all of it was, before
        else:
            parts.allocate += size * costs.allocate
            self._simulation.spawn(self._allocate(weights, chunks, costs, allocated))
        self._simulation.spawn(self._read(weights, chunks, costs, allocated))

    def wait(self, weights: SimWeights, chunk: int) -> Process:
        """Wait until `chunk` is restored."""
        while not weights.is_resident(chunk):
            yield self._changed

    def _allocate(self, weights: SimWeights, chunks: list[int], costs: Costs, allocated: _Count) -> Process:
        for index, chunk in enumerate(chunks):
            while index > allocated.used + _AHEAD:
                yield self._changed
            yield from self.cpu.use(costs.allocate * weights.size(chunk))
            allocated.value += 1
            self._changed.fire()

    def _read(self, weights: SimWeights, chunks: list[int], costs: Costs, allocated: _Count) -> Process:
        for index, chunk in enumerate(chunks):
            while index >= allocated.value:
                yield self._changed
            yield from self.flash.use(costs.load * weights.size(chunk))
            allocated.used += 1
            self._simulation.spawn(self._open(weights, chunk, costs))

    def _open(self, weights: SimWeights, chunk: int, costs: Costs) -> Process:
        yield from self.cpu.use((costs.protect + costs.decrypt) * weights.size(chunk))
        weights.settle(chunk)
        self._changed.fire()

    def _restore_whole(self, weights: SimWeights, chunks: list[int], costs: Costs, parts: Parts) -> Process:
        size = sum(weights.size(chunk) for chunk in chunks)
        parts.load += size * costs.load
        parts.decrypt += size * costs.decrypt
        yield from self.flash.use(size * costs.load)
        yield from self.cpu.use(size * costs.decrypt)
        for chunk in chunks:
            weights.settle(chunk)

    def _compute(self, restore: SimRestore, seconds: float, streamed: int, streaming: float) -> Process:
        nodes = restore.plan.nodes
        placed = restore.weights.nodes_before(streamed)
        position = 0
        while position < placed:
            ready = min(restore.ready(), placed)
            if ready > position:
                yield from self.engine.use(seconds * (ready - position) / nodes)
                position = ready
            else:
                yield self._changed
        if placed < nodes:
            yield from self.engine.use(max(seconds * (nodes - placed) / nodes, streaming))


@dataclasses.dataclass(slots=True)
class _Count:
    """Chunks of one restore that were allocated, and of those, read."""

    value: int = 0
    used: int = 0
