"""Large matrix products of a graph go to the NPU; the CPU does what does not need them meanwhile.

The seam is EngineGraph.run: the nodes of a slice are computed in another order, by two, and are all
computed when it returns. A product is quantized as llama.cpp would do it itself, into memory of the job's
own, and its result is copied to where llama.cpp wants it, so a job that was lost harms nothing (see
trusted.flexnpu). Whatever the NPU does not do, the CPU does: the same numbers, but for the order in which
they are summed up.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from flexserve.errors import GrantRefusedError
from flexserve.platforms.ports import NpuLimits, Product
from flexserve.policy.offload import (
    LEAST_ROWS,
    LEAST_WORK,
    WINDOW,
    Conflicts,
    Pace,
    cut,
    job_work,
    shared_out,
)
from flexserve.trusted.engine import abi, tensors
from flexserve.trusted.engine.ggml import Ggml
from flexserve.trusted.engine.jobs import JobMemory
from flexserve.trusted.engine.tensors import floats_at
from flexserve.trusted.flexnpu import FlexNpu, Step
from flexserve.trusted.memory.flexmem import FlexMem

_BLOCK, _BLOCK_BYTES = 32, 34  # values and bytes of a block of q8_0

Compute = Callable[[abi.Graph], None]
Resting = Callable[[], AbstractContextManager[None]]


@dataclasses.dataclass(frozen=True, slots=True)
class NodeProduct:
    """A node that multiplies `rows` of float32 activations by a matrix of q8_0."""

    node: int
    rows: int
    columns: int
    depth: int
    weights: int  # addresses
    activations: int
    target: int

    @property
    def work(self) -> int:
        """Multiplications."""
        return self.rows * self.columns * self.depth

    @property
    def width(self) -> int:
        """Bytes of a row of q8_0."""
        return self.depth // _BLOCK * _BLOCK_BYTES


class Offload:
    """The NPU as the engine uses it. Belongs to the engine thread, but for `release`."""

    def __init__(self, ggml: Ggml, flexmem: FlexMem, npu: FlexNpu) -> None:
        self.ggml, self.npu = ggml, npu
        self.memory = JobMemory(flexmem, npu.limits.place)
        self.cpu = Pace()

    def follow(self, graph: abi.Graph, resting: Resting) -> GraphOffload | None:
        """Return what will compute `graph` with the NPU's help; None: there is nothing in it for it.

        In `resting` it waits for the NPU: then others may have the cores.
        """
        pointers = (ctypes.c_uint64 * int(graph.n_nodes)).from_address(graph.nodes)
        nodes = tensors.read(pointers)
        products = {product.node: product for product in _products(nodes, self.npu.limits)}
        if not products or self.npu.occupied:
            return None
        try:
            self.memory.provide(
                activations=max(product.rows * product.width for product in products.values()),
                results=max(4 * product.rows * product.columns for product in products.values()),
            )
        except GrantRefusedError:
            return None  # the CPU needs no such memory
        self.npu.want()
        return GraphOffload(self, graph, nodes, products, resting)

    def close(self) -> int:
        """Free the jobs' memory; return the bytes. Not while a job may write to it."""
        return self.memory.free()

    def release(self, *, keep_grants: bool = False) -> int:
        """Give the jobs' memory up, unless a job may still write to it; return the bytes. Any thread."""
        return 0 if self.npu.occupied else self.memory.release(keep_grants=keep_grants)


class GraphOffload:
    """One run over a graph with the NPU's help. Lives as long as the hook's call."""

    def __init__(
        self,
        offload: Offload,
        graph: abi.Graph,
        nodes: NDArray[np.void],
        products: dict[int, NodeProduct],
        resting: Resting,
    ) -> None:
        self._offload, self._npu, self._memory = offload, offload.npu, offload.memory
        self._graph, self._nodes, self._products = graph, nodes, products
        self._resting = resting
        self.products = 0  # that the NPU computed

    def run(self, start: int, stop: int, compute: Compute) -> None:
        """Compute nodes [start, stop), by `compute` what the CPU does. Raises what that raises."""
        todo = list(range(start, stop))
        while todo:
            self._npu.want()
            product = next((self._products[node] for node in todo if node in self._products), None)
            if product is None or not self._npu.ready():
                self._compute(todo, compute)
                return
            before = [node for node in todo if node < product.node]
            self._compute(before, compute)
            done = self._together(product, todo[len(before) :], compute)
            todo = [node for node in todo[len(before) :] if node not in done]

    def _together(self, product: NodeProduct, todo: list[int], compute: Compute) -> set[int]:
        """Compute `product`, the first of `todo`, on the NPU, and others at the same time; return which."""
        group = self._group(product, todo)
        count = shared_out([member.work for member in group], self._npu.pace, self._offload.cpu)
        npus, cpus = group[:count], {member.node for member in group[count:]}
        pending = [member.node for member in npus]
        leave = self._products.keys() - cpus
        rest = [node for node in todo if node not in pending]
        self._begin(npus)
        try:
            meanwhile = self._conflicts.independent(pending, rest, leave)
            self._compute(meanwhile, compute)
        finally:
            with self._resting():
                done = self._npu.finish()  # in any case: it writes to tensors until then
        if done:
            self._npu.counters.products += len(npus)
            self.products += len(npus)
        else:
            self._npu.counters.fallbacks += len(npus)
            self._compute(pending, compute)
        return {*pending, *meanwhile}

    def _group(self, first: NodeProduct, todo: Sequence[int]) -> list[NodeProduct]:
        """Return `first` and the products of the same activations that may be computed along with it."""
        group = [first]
        for place, node in enumerate(todo[1:WINDOW], 1):
            other = self._products.get(node)
            if (
                other is not None
                and (other.activations, other.rows, other.depth)
                == (first.activations, first.rows, first.depth)
                and self._conflicts.independent(todo[:place], [node])
            ):
                group.append(other)
        return group

    def _compute(self, nodes: Sequence[int], compute: Compute) -> None:
        """Compute nodes on the CPU, in their order."""
        if not nodes:
            return
        began = time.perf_counter()
        first, last = nodes[0], nodes[-1]
        if last - first + 1 == len(nodes):
            compute(self._graph.slice(first, last + 1))
        else:
            compute(self._graph.pick(nodes))
        work = sum(self._products[node].work for node in nodes if node in self._products)
        if work:
            self._offload.cpu.note(work, time.perf_counter() - began)

    # ---- the NPU's part ---------------------------------------------------------------------------

    def _begin(self, products: Sequence[NodeProduct]) -> None:
        """Quantize the activations that `products` share, and have the NPU begin."""
        first = products[0]
        self._offload.ggml.quantize_q8_0(
            first.activations, self._memory.activations, first.rows * first.depth
        )
        self._npu.begin(list(self._steps(products)), self._memory.place)

    def _steps(self, products: Sequence[NodeProduct]) -> Iterator[Step]:
        """Cut the products into jobs of a bounded length."""
        first, limits = products[0], self._npu.limits
        reach = limits.reach - first.rows * first.width  # B and C of a job
        most = min(  # columns
            job_work(self._npu.pace) // (first.rows * first.depth),
            self._memory.room // (4 * first.rows),
            reach // (first.width + 4 * first.rows),
            limits.columns,
        )
        job: list[_Portion] = []
        room = most
        for product in products:
            for column, count in cut(product.columns, most):
                if job and (count > room or len(job) == limits.products):
                    yield self._step(job)
                    job, room = [], most
                job.append(_Portion(product, column, count))
                room -= count
        yield self._step(job)

    def _step(self, job: Sequence[_Portion]) -> Step:
        address, parts = self._memory.results, []
        for portion in job:
            parts.append((portion, address))
            address += 4 * portion.product.rows * portion.count
        return Step(
            [portion.on(self._memory.activations, address) for portion, address in parts],
            sum(portion.product.rows * portion.count * portion.product.depth for portion in job),
            functools.partial(_collect, parts),
        )

    # ---- what nodes touch -------------------------------------------------------------------------

    @functools.cached_property
    def _conflicts(self) -> Conflicts:
        nodes = self._nodes
        pointers = (ctypes.c_uint64 * len(nodes)).from_address(self._graph.nodes)
        used = max(np.flatnonzero(nodes["src"].any(axis=0)), default=0) + 1  # most nodes have few sources
        writes = _ranges(self._offload.ggml, np.array(pointers, np.uint64))
        reads = _ranges(self._offload.ggml, nodes["src"][:, :used])
        idle = np.isin(nodes["op"], abi.OPS_OF_NO_EFFECT)
        writes[idle] = reads[idle] = 0
        writes[np.isin(nodes["op"], abi.OPS_OF_UNKNOWN_EFFECT)] = (0, np.iinfo(np.uint64).max)
        return Conflicts(reads, writes)


@dataclasses.dataclass(frozen=True, slots=True)
class _Portion:
    """Some columns of a product."""

    product: NodeProduct
    first: int
    count: int

    def on(self, activations: int, results: int) -> Product:
        """Return the NPU's product of the activations and results at these addresses."""
        whole = self.product
        return Product(
            rows=whole.rows,
            columns=self.count,
            depth=whole.depth,
            a=activations,
            a_stride=whole.width,
            b=whole.weights + self.first * whole.width,
            b_stride=whole.width,
            c=results,
            c_stride=4 * self.count,
        )


def _collect(parts: Sequence[tuple[_Portion, int]]) -> None:
    """Copy results to where llama.cpp wants them."""
    for portion, address in parts:
        whole = portion.product
        target = _floats(whole.target, whole.rows, whole.columns)
        np.copyto(
            target[:, portion.first : portion.first + portion.count],
            _floats(address, whole.rows, portion.count),
        )


def _floats(address: int, rows: int, columns: int) -> NDArray[np.float32]:
    return floats_at(address, rows * columns).reshape(rows, columns)


def _ranges(ggml: Ggml, pointers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the bytes [start, stop) of the tensors at `pointers`, as shape (*pointers.shape, 2)."""
    unique, inverse = np.unique(pointers, return_inverse=True)
    ranges = np.zeros((len(unique), 2), np.uint64)
    for index, pointer in enumerate(unique.tolist()):
        if pointer:
            start = abi.Tensor.from_address(pointer).data or 0
            ranges[index] = start, start + ggml.bytes_of(pointer)
    return ranges[inverse.reshape(pointers.shape)]


def _products(nodes: NDArray[np.void], limits: NpuLimits) -> Iterator[NodeProduct]:
    """Yield the products among `nodes` that the NPU can compute and is worth asking for."""
    for node in np.flatnonzero(nodes["op"] == abi.OP_MUL_MAT).tolist():
        target = nodes[node]
        weights, activations = tensors.read([int(pointer) for pointer in target["src"][:2]])
        depth, columns = weights["ne"][:2].tolist()
        rows = int(activations["ne"][1])
        if (
            _is_matrix(weights, abi.TYPE_Q8_0, depth // _BLOCK * _BLOCK_BYTES)
            and not weights["extra"]  # as the file has it, not repacked for some CPU
            and _is_matrix(activations, abi.TYPE_F32, 4 * depth)
            and _is_matrix(target, abi.TYPE_F32, 4 * columns)
            and LEAST_ROWS <= rows <= limits.rows
            and depth <= limits.depth
            and rows * columns * depth >= LEAST_WORK
        ):
            addresses = (int(tensor["data"]) for tensor in (weights, activations, target))
            yield NodeProduct(node, rows, columns, depth, *addresses)


def _is_matrix(tensor: np.void, kind: int, stride: int) -> bool:
    """Return whether a tensor is rows of type `kind`, `stride` bytes apart, and no more than that."""
    unit = _BLOCK_BYTES if kind == abi.TYPE_Q8_0 else 4
    shaped = tensor["ne"][2:].tolist() == [1, 1] and tensor["nb"][:2].tolist() == [unit, stride]
    return bool(tensor["type"] == kind and shaped)
