"""An engine for residency without llama.cpp: weights whose every chunk says what it must hold."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable

import numpy as np

from flexserve.errors import StoredDataError
from flexserve.platforms.ports import SecureMemory
from flexserve.simulator.secure_memory import SimSecureMemory
from flexserve.trusted.memory.flexmem import FlexMem
from flexserve.trusted.memory.ownership import PageState
from flexserve.trusted.weights.chunks import Part, Weights
from flexserve.trusted.weights.job import RestoreStats
from flexserve.trusted.weights.plan import Needs
from flexserve.trusted.weights.residency import Residency
from flexserve.units import align_up

CHUNK = 4096


class Budget:
    """A normal world that grants `limit` bytes at any one time, and keeps its own account of them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.granted = 0
        self.refusals = 0
        self._lock = threading.Lock()

    def request(self, size: int, minimum: int) -> int:
        with self._lock:
            allowed = min(size, max(0, self.limit - self.granted)) // CHUNK * CHUNK
            self.granted += allowed
            self.refusals += allowed < size
            return allowed

    def returned(self, size: int, reason: str = "") -> None:
        with self._lock:
            self.granted -= size


def content(buffer: int, index: int, length: int) -> bytes:
    """Return what chunk `index` of `buffer` holds."""
    seed = hashlib.sha256(f"{buffer}/{index}".encode()).digest()
    return (seed * (length // len(seed) + 1))[:length]


class FakeSource:
    """A WeightSource that may be slow, and that fails for the chunks (buffer, index) in `damaged`."""

    def __init__(self, seed: int = 0, delay: float = 0) -> None:
        self.damaged: set[tuple[int, int]] = set()
        self.delay = delay  # seconds at most
        self.restored: list[tuple[int, int]] = []
        self.steps: list[str] = []
        self.hold = threading.Event()
        self.hold.set()
        self._rng = random.Random(seed)

    def restore(self, buffer: int, index: int, target: memoryview) -> float:
        self.read(buffer, index, target)
        return self.decrypt(buffer, index, target)

    def read(self, buffer: int, index: int, target: memoryview) -> None:
        self.hold.wait()
        if self.delay:
            time.sleep(self._rng.random() * self.delay)
        target[:] = b"?" * len(target)
        self.steps.append("read")

    def decrypt(self, buffer: int, index: int, target: memoryview) -> float:
        assert bytes(target) == b"?" * len(target), "it was not read before"
        for number, at in enumerate(range(0, len(target), CHUNK), index):
            chunk = target[at : at + CHUNK]
            if (buffer, number) in self.damaged:
                chunk[:] = bytes(len(chunk))
                raise StoredDataError("A chunk is not what was written.", hint="Add the model again.")
            chunk[:] = content(buffer, number, len(chunk))
            self.restored.append((buffer, number))
            self.steps.append("decrypt")
        return 1e-6

    def prefetch(self, buffer: int, index: int, count: int) -> None:
        pass


class Machine:
    """Simulated memory, one model with two buffers, and graphs that check all they read."""

    def __init__(
        self,
        chunks: tuple[int, ...] = (13, 9),
        budget: int = 1 << 30,
        threads: int = 2,
        delay: float = 0,
        *,
        memory: SecureMemory | None = None,
        residency: Callable[[FlexMem, int], Residency] = Residency,
    ) -> None:
        self.budget = Budget(budget)
        self.memory = memory or SimSecureMemory(64 << 20, CHUNK)
        self.flexmem = FlexMem(self.memory, 64 << 20, self.budget)
        self.residency = residency(self.flexmem, threads)
        self.source = FakeSource(delay=delay)
        self.weights = self.model(chunks, self.source)

    def model(self, chunks: tuple[int, ...], source: FakeSource) -> Weights:
        # The last chunk of a buffer is a short one.
        sizes = [count * CHUNK - 1000 for count in chunks]
        parts = [Part(self.flexmem.reserve(align_up(size, CHUNK)), size) for size in sizes]
        return Weights("fake", parts, source, CHUNK)

    def compute(self, reads: list[list[int]], on_node: Callable[[int], None] | None = None) -> str:
        """Run a graph whose node i reads chunks `reads[i]`; return a digest of what it read."""
        graph = FakeGraph(self, reads, on_node)
        self.residency.compute(self.weights, graph, RestoreStats())
        return graph.digest.hexdigest()

    def expected(self, reads: list[list[int]]) -> str:
        digest = hashlib.sha256()
        for chunk in (g for node in reads for g in node):
            part, index, length = self.weights.locate(chunk)
            digest.update(content(part, index, length))
        return digest.hexdigest()

    def recall(self, count: int) -> int:
        """Take up to `count` chunks away between two slices, as the reclaimer does; return the bytes."""
        with self.residency.gate.shut(10) as shut:
            assert shut
            size = self.residency.evict(self.weights, self.weights.eviction_order()[:count])
            size += self.flexmem.return_unused()
        self.budget.returned(size)
        return size

    def close(self) -> None:
        """Stop the loaders, then check that memory adds up on both sides of the boundary."""
        self.source.hold.set()
        self.residency.close()
        self.flexmem.check()
        held = self.flexmem.bytes_in(PageState.GRANTED) + self.flexmem.bytes_in(PageState.SECURE)
        assert held == self.budget.granted, "the two worlds do not agree on what was granted"


class FakeGraph:
    """A GraphRun that reads every chunk a node needs through a view, and digests it."""

    def __init__(
        self, machine: Machine, reads: list[list[int]], on_node: Callable[[int], None] | None = None
    ) -> None:
        self.nodes = len(reads)
        self.stride = 3
        self.digest = hashlib.sha256()
        self.ran: list[int] = []
        self._machine, self._reads, self._on_node = machine, reads, on_node

    def needs(self) -> Needs:
        uses = [(node, chunk) for node, chunks in enumerate(self._reads) for chunk in chunks]
        nodes, chunks = zip(*uses, strict=True) if uses else ((), ())
        return Needs(self.nodes, np.array(nodes, dtype=np.int32), np.array(chunks, dtype=np.int32))

    def run(self, start: int, stop: int) -> None:
        assert start < stop, "a slice of no nodes"
        weights, flexmem = self._machine.weights, self._machine.flexmem
        for node in range(start, stop):
            self.ran.append(node)
            for chunk in self._reads[node]:
                part, index, length = weights.locate(chunk)
                # Absent memory raises here; a real graph would have died of it.
                with flexmem.view(weights.parts[part].arena, index * CHUNK, length) as view:
                    data = bytes(view)
                assert data == content(part, index, length), f"node {node} read a wrong chunk {chunk}"
                self.digest.update(data)
            if self._on_node is not None:
                self._on_node(node)
