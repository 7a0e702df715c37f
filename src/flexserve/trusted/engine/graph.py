"""Reading a `ggml_cgraph`: which chunks of the weights each node needs, in execution order."""

from __future__ import annotations

import ctypes
import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from flexserve.trusted.engine import abi, tensors
from flexserve.trusted.engine.offload import GraphOffload
from flexserve.trusted.weights.plan import Needs


@dataclasses.dataclass(frozen=True, slots=True)
class Extent:
    """Where one weight tensor lives: bytes [start, stop) of the address space."""

    start: int
    stop: int
    chunk: int  # number of the first chunk it touches
    count: int  # chunks it touches


class WeightMap:
    """All weight tensors of a model by address."""

    def __init__(self, extents: Sequence[Extent]) -> None:
        ordered = sorted(extents, key=lambda e: e.start)
        self.start: NDArray[np.uint64] = np.array([e.start for e in ordered], dtype=np.uint64)
        self.stop: NDArray[np.uint64] = np.array([e.stop for e in ordered], dtype=np.uint64)
        self.first: NDArray[np.int32] = np.array([e.chunk for e in ordered], dtype=np.int32)
        self.count: NDArray[np.int32] = np.array([e.count for e in ordered], dtype=np.int32)

    def find(self, address: NDArray[np.uint64]) -> NDArray[np.intp]:
        """Return the index of the tensor at each address, −1 where there is none."""
        index = np.searchsorted(self.start, address, side="right") - 1
        inside = (index >= 0) & (address < self.stop[np.maximum(index, 0)])
        found: NDArray[np.intp] = np.where(inside, index, -1)
        return found


class EngineGraph:
    """One run over a graph (the GraphRun of trusted.weights.residency). Lives as long as the hook call."""

    def __init__(
        self,
        address: int,
        weights: WeightMap,
        stride: int,
        compute: Callable[[abi.Graph], None],
        *,
        timed: Callable[[int, float], None],
        offload: GraphOffload | None = None,
    ) -> None:
        """`compute` is for a graph, `timed` hears how many seconds so many nodes took."""
        self._graph = abi.Graph.from_address(address)
        self._weights, self._compute, self._timed, self._offload = weights, compute, timed, offload
        self.nodes = int(self._graph.n_nodes)
        self.stride = stride

    def run(self, start: int, stop: int) -> None:
        """Compute nodes [start, stop)."""
        began = time.perf_counter()
        if self._offload is not None:
            self._offload.run(start, stop, self._compute)
        else:
            whole = start == 0 and stop == self.nodes
            self._compute(self._graph if whole else self._graph.slice(start, stop))
        self._timed(stop - start, time.perf_counter() - began)

    def needs(self) -> Needs:
        """Walk the nodes and return what they read of the weights.

        A tensor that a node reads it needs whole, in address order: also a table of which it gathers rows
        that depend on the tokens, and experts of which it uses those that the tokens are routed to. What
        is brought in is seen by the OS and the disk, and must not tell them one prompt from another.
        """
        pointers = (ctypes.c_uint64 * self.nodes).from_address(self._graph.nodes)
        sources = tensors.read(pointers)["src"]
        unique, inverse = np.unique(sources, return_inverse=True)
        data = np.zeros(len(unique), dtype=np.uint64)
        data[unique != 0] = tensors.read(unique[unique != 0].tolist())["data"]
        found = self._weights.find(data)[inverse.reshape(sources.shape)]  # (nodes, MAX_SRC)
        node, slot = np.nonzero(found >= 0)
        tensor = found[node, slot]
        first, count = self._weights.first[tensor], self._weights.count[tensor]
        before = np.cumsum(count) - count
        chunk = np.arange(count.sum()) + np.repeat(first - before, count)
        return Needs(self.nodes, np.repeat(node, count).astype(np.int32), chunk.astype(np.int32))
