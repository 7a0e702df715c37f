"""Reading a `ggml_cgraph`: which granules of the weights each node needs, in execution order."""

from __future__ import annotations

import ctypes
import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from flexserve.core.restore import Needs
from flexserve.secure.engine import abi, tensors
from flexserve.secure.engine.offload import GraphOffload


@dataclasses.dataclass(frozen=True, slots=True)
class Extent:
    """Where one weight tensor lives: bytes [start, stop) of the address space."""

    start: int
    stop: int
    granule: int  # number of the first granule it touches
    count: int  # granules it touches


class WeightMap:
    """All weight tensors of a model by address."""

    def __init__(self, extents: Sequence[Extent], granule: int) -> None:
        ordered = sorted(extents, key=lambda e: e.start)
        self._granule = granule
        self.start: NDArray[np.uint64] = np.array([e.start for e in ordered], dtype=np.uint64)
        self.stop: NDArray[np.uint64] = np.array([e.stop for e in ordered], dtype=np.uint64)
        self.first: NDArray[np.int32] = np.array([e.granule for e in ordered], dtype=np.int32)
        self.count: NDArray[np.int32] = np.array([e.count for e in ordered], dtype=np.int32)

    def find(self, address: NDArray[np.uint64]) -> NDArray[np.intp]:
        """Return the index of the tensor at each address, −1 where there is none."""
        index = np.searchsorted(self.start, address, side="right") - 1
        inside = (index >= 0) & (address < self.stop[np.maximum(index, 0)])
        found: NDArray[np.intp] = np.where(inside, index, -1)
        return found

    def rows(self, tensor: int, first_byte: NDArray[np.int64], length: int) -> NDArray[np.int32]:
        """Return the granules that hold the given rows (byte offsets in tensor `tensor`)."""
        # A tensor need not start at a granule's start: count from the granule that it starts in.
        lead = int(self.start[tensor]) % self._granule
        low = (first_byte + lead) // self._granule
        high = (first_byte + lead + length - 1) // self._granule
        granules: NDArray[np.int32] = np.unique(np.concatenate([low, high])) + self.first[tensor]
        return granules.astype(np.int32)


class EngineGraph:
    """One run over a graph (the GraphRun of secure.residency). Lives as long as the hook call."""

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
        """Walk the nodes and return what they read of the weights."""
        pointers = (ctypes.c_uint64 * self.nodes).from_address(self._graph.nodes)
        nodes = tensors.read(pointers)
        sources = nodes["src"]
        unique, inverse = np.unique(sources, return_inverse=True)
        data = np.zeros(len(unique), dtype=np.uint64)
        data[unique != 0] = tensors.read(unique[unique != 0].tolist())["data"]
        found = self._weights.find(data)[inverse.reshape(sources.shape)]  # (nodes, MAX_SRC)
        node, slot = np.nonzero(found >= 0)
        tensor = found[node, slot]
        first, count = self._weights.first[tensor], self._weights.count[tensor]
        gathers = (nodes["op"][node] == abi.OP_GET_ROWS) & (slot == 0) & (count > 1)
        pieces = [
            (n, self._gathered(nodes[n], int(t)) if gather else np.arange(f, f + c, dtype=np.int32))
            for n, t, f, c, gather in zip(
                node.tolist(), tensor.tolist(), first.tolist(), count.tolist(), gathers, strict=True
            )
        ]
        if not pieces:
            return Needs(self.nodes, np.empty(0, np.int32), np.empty(0, np.int32))
        return Needs(
            self.nodes,
            np.concatenate([np.full(len(granules), n, dtype=np.int32) for n, granules in pieces]),
            np.concatenate([granules for _, granules in pieces]),
        )

    def _gathered(self, node: np.void, tensor: int) -> NDArray[np.int32]:
        """Return the granules of the rows that a GET_ROWS node reads.

        The row numbers can be read here when they are an input of the graph (a leaf: no
        operation makes them), as they are for token embeddings; otherwise all rows are needed.
        """
        table, numbers = (abi.Tensor.from_address(int(p)) for p in node["src"][:2])
        everything = np.arange(
            self._weights.first[tensor], self._weights.first[tensor] + self._weights.count[tensor]
        )
        contiguous = numbers.nb[0] == 4 and numbers.ne[1] == numbers.ne[2] == numbers.ne[3] == 1
        if numbers.op != 0 or numbers.view_src or not contiguous or table.ne[2] != 1:
            return everything.astype(np.int32)
        ids = np.frombuffer(ctypes.string_at(numbers.data, 4 * numbers.ne[0]), dtype=np.int32)
        ids = np.unique(ids[(ids >= 0) & (ids < table.ne[1])])
        if len(ids) == 0:
            return everything.astype(np.int32)
        offset = int(table.data) - int(self._weights.start[tensor])
        starts = ids.astype(np.int64) * int(table.nb[1]) + offset
        return self._weights.rows(tensor, starts, int(table.nb[1]))
