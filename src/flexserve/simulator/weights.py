"""A model's weights in simulated memory, and one restore of them under way."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flexserve.simulator.dram import Dram
from flexserve.simulator.machine import SimModel
from flexserve.trusted.weights.plan import Needs, RestorePlan
from flexserve.trusted.weights.states import ABSENT, RESIDENT, ChunkEvent, ChunkState, ChunkTable


class SimWeights:
    """Which chunks of a model are where. Layers read equal parts of the model, front to back."""

    def __init__(self, model: SimModel, dram: Dram) -> None:
        self._dram, self._bytes = dram, model.weights
        chunk = dram.chunk
        self.count = -(-model.weights // chunk)
        self._table = ChunkTable(self.count)
        self._pages: dict[int, int] = {}  # chunk of the model -> chunk of memory
        edges = [model.weights * node // model.layers for node in range(model.layers + 1)]
        reads = [
            (node, each)
            for node in range(model.layers)
            for each in range(edges[node] // chunk, -(-edges[node + 1] // chunk))
        ]
        nodes, chunks = np.array(reads, dtype=np.int32).T
        self.needs = Needs(model.layers, nodes, chunks)

    @property
    def states(self) -> NDArray[np.uint8]:
        """The state of each chunk, to read."""
        return self._table.states

    @property
    def held(self) -> int:
        """Bytes of memory taken, whether restored yet or not."""
        return len(self._pages) * self._dram.chunk

    @property
    def resident(self) -> int:
        """Bytes of memory with weights in them."""
        return self._table.count(ChunkState.RESIDENT) * self._dram.chunk

    @property
    def resident_fraction(self) -> float:
        """How much of the model is there, 0 to 1."""
        return self._table.count(ChunkState.RESIDENT) / self.count

    @property
    def missing(self) -> int:
        """Bytes that are not resident."""
        return (self.count - self._table.count(ChunkState.RESIDENT)) * self._dram.chunk

    def size(self, chunk: int) -> int:
        """Return how many bytes of the model are in its chunk number `chunk`."""
        return min(self._dram.chunk, self._bytes - chunk * self._dram.chunk)

    def nodes_before(self, size: int) -> int:
        """Return how many nodes come first that read none of the last `size` bytes."""
        fits = (self.count - -(-size // self._dram.chunk)) * self._dram.chunk
        return self.needs.nodes if fits >= self._bytes else fits * self.needs.nodes // self._bytes

    def is_resident(self, chunk: int) -> bool:
        """Return whether a chunk has been restored."""
        return bool(self.states[chunk] == RESIDENT)

    def absent(self) -> list[int]:
        """Return the chunks without memory, in layer order."""
        return np.flatnonzero(self.states == ABSENT).tolist()

    def take(self, chunks: list[int]) -> None:
        """Put memory behind absent chunks. Raises GrantRefusedError and then changes nothing."""
        self._pages.update(zip(chunks, self._dram.take(len(chunks)), strict=True))
        self._table.apply(ChunkEvent.CLAIM, chunks)

    def settle(self, chunk: int) -> None:
        """A chunk that was being restored is there."""
        self._table.move(ChunkEvent.LOADED, chunk)

    def drop(self, size: int) -> int:
        """Give the last resident chunks back, about `size` bytes of them; return the bytes."""
        count = -(-size // self._dram.chunk)
        resident = np.flatnonzero(self.states == RESIDENT).tolist()
        tail = resident[max(0, len(resident) - count) :]
        self._table.apply(ChunkEvent.EVICT, tail)
        self._dram.give([self._pages.pop(chunk) for chunk in tail])
        self._table.apply(ChunkEvent.GONE, tail)
        return len(tail) * self._dram.chunk


class SimRestore:
    """One run over a model: the plan, and how far its restore is."""

    def __init__(self, weights: SimWeights) -> None:
        self.weights = weights
        self.plan = RestorePlan(weights.needs, weights.states, 0)
        self._done = 0

    def ready(self) -> int:
        """Return the first node that cannot run yet."""
        states, order = self.weights.states, self.plan.order
        while self._done < len(order) and states[order[self._done]] == RESIDENT:
            self._done += 1
        return self.plan.ready(self._done)
