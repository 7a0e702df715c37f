"""What FlexServe is measured against: the same engine with another policy for its weights.

    strawman      secure memory allocated whole for each request; load all, decrypt all, then compute
    strawman-opt  the same memory policy; loading and decrypting overlap with compute
    nw-base       unprotected: weights in clear in files that the OS keeps in its page cache

Model files, engine, loader threads, order of loading and compute are those of FlexServe; only what
stands here differs: what comes before a graph, and what is behind a chunk (a Filler). That the memory of
a request is freed after it is a recall of everything, made by whoever measures. Each phase of the strawmen
uses as many threads as FlexServe's loaders are, so they lose nothing but the overlap and what could have
been kept. `flexserve serve` offers none of these.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flexserve.errors import NormalWorldError
from flexserve.platforms.linux.page_cache import CachedFile
from flexserve.platforms.ports import Arena
from flexserve.protocol.trusted_app import Missing
from flexserve.trusted.memory.flexmem import FlexMem
from flexserve.trusted.weights.chunks import Weights
from flexserve.trusted.weights.cpu_arbiter import LOADER_NICE, lower_priority
from flexserve.trusted.weights.fill import Cost, Filler
from flexserve.trusted.weights.job import RestoreStats
from flexserve.trusted.weights.residency import GraphRun, Residency
from flexserve.trusted.weights.states import ChunkState

BASELINES = ("strawman", "strawman-opt", "nw-base")


def make_residency(baseline: str, flexmem: FlexMem, threads: int, folder: Path) -> Residency:
    """Return the residency of a baseline ("": FlexServe's own).

    `folder` is on the disk of the models. Raises NormalWorldError for a baseline that needs memory of
    another kind than `flexmem` has.
    """
    if baseline == "strawman":
        return Strawman(flexmem, threads)
    if baseline == "strawman-opt":
        return StrawmanOpt(flexmem, threads)
    if baseline == "nw-base":
        if flexmem.protection.protected:
            raise NormalWorldError("The baseline nw-base protects nothing.", hint="Add --memory plain.")
        return NwBase(flexmem, threads, folder)
    return Residency(flexmem, threads)


class _Whole(Filler):
    """Fills memory that is there before the first chunk is read."""

    def __init__(self, flexmem: FlexMem) -> None:
        super().__init__(flexmem, sampling=False)
        self._memory = flexmem
        self._prepared: dict[Weights, set[int]] = {}  # chunks in memory that no loader has seen yet

    def ask(self, size: int, minimum: int) -> None:
        """Ask for nothing: the memory is there."""

    def commit(self, arena: Arena, offset: int) -> bool:
        """Put memory behind a chunk only if a recall took it from under the request."""
        return self._memory.holds(arena, offset) or super().commit(arena, offset)

    def prepare(self, weights: Weights) -> None:
        """Have all chunks count as filled, once."""
        self._prepared[weights] = set(range(weights.count))

    def forget(self, weights: Weights) -> None:
        """Have none of them count as filled."""
        self._prepared.pop(weights, None)

    def fill(self, weights: Weights, chunk: int, commit: Callable[[Arena, int], bool]) -> Cost | None:
        """Fill a chunk, unless it was prepared."""
        if chunk in self._prepared.get(weights, ()):
            self._prepared[weights].remove(chunk)
            return Cost(0.0, 0.0, 0.0, 0)
        return super().fill(weights, chunk, commit)

    def view(self, weights: Weights, chunk: int) -> memoryview:
        """Return the memory of a chunk."""
        part, index, length = weights.locate(chunk)
        return self._memory.view(weights.parts[part].arena, index * self._memory.chunk, length)


class StrawmanOpt(Residency):
    """All the memory of the weights is there before the first byte of them is read."""

    def __init__(self, flexmem: FlexMem, threads: int) -> None:
        self._filler = _Whole(flexmem)
        super().__init__(flexmem, threads, self._filler)
        self._memory = flexmem
        # At the loaders' priority, for other programs' sake: a baseline gets no larger share of the cores.
        self._pool = ThreadPoolExecutor(
            threads, "baseline", initializer=lower_priority, initargs=(LOADER_NICE,)
        )

    def compute(self, weights: Weights, graph: GraphRun, stats: RestoreStats) -> None:
        """Allocate, then run the graph along the restore."""
        self._begin(weights, stats)
        super().compute(weights, graph, stats)

    def restore(self, weights: Weights, stats: RestoreStats) -> None:
        """Allocate, then bring all weights in."""
        self._begin(weights, stats)
        super().restore(weights, stats)

    def prefetch(self, weights: Weights, chunks: Sequence[int]) -> None:
        """Do nothing: no memory is held between requests."""

    def close(self) -> None:
        """Stop all threads; chunks stay as they are."""
        self._pool.shutdown()
        super().close()

    def _begin(self, weights: Weights, stats: RestoreStats) -> None:
        if weights.whole or self._allocated(weights):
            return
        began = time.perf_counter()
        self._allocate(weights, stats)
        stats.waited += time.perf_counter() - began

    def _allocated(self, weights: Weights) -> bool:
        """Return whether all the memory is there: what no graph read yet may still be on its way."""
        return all(self._memory.committed(part.arena) == part.arena.size for part in weights.parts)

    def _allocate(self, weights: Weights, stats: RestoreStats) -> None:
        """Commit every chunk in one go and touch it. Raises GrantRefusedError: it is all or nothing."""
        flexmem = self._memory
        # What a request that was broken off has left: baselines keep nothing.
        left = self.retire(weights) + sum(flexmem.release_all(part.arena) for part in weights.parts)
        flexmem.report_returned(left)
        began = time.perf_counter()
        size = sum(part.arena.size for part in weights.parts)
        flexmem.grant(size, size)
        for part in weights.parts:
            flexmem.commit(part.arena, 0, part.arena.size)
        stats.allocate += time.perf_counter() - began
        touch = self._filler.touch
        stats.allocate += sum(
            self._pool.map(lambda chunk: touch(self._filler.view(weights, chunk)), range(weights.count))
        )


class Strawman(StrawmanOpt):
    """Nothing overlaps: allocate all, load all, decrypt all; then loaders find every chunk filled."""

    def _allocate(self, weights: Weights, stats: RestoreStats) -> None:
        """Commit, read, and decrypt every chunk, one after the other. Raises as the source does, too."""
        super()._allocate(weights, stats)
        chunks = weights.usual or range(weights.count)

        def read(chunk: int) -> float:
            part, index, _ = weights.locate(chunk)
            began = time.perf_counter()
            weights.source.read(part, index, self._filler.view(weights, chunk))
            return time.perf_counter() - began

        def decrypt(chunk: int) -> float:
            part, index, _ = weights.locate(chunk)
            return weights.source.decrypt(part, index, self._filler.view(weights, chunk))

        stats.load += sum(self._pool.map(read, chunks))
        stats.decrypt += sum(self._pool.map(decrypt, chunks))
        stats.restored += weights.size
        self._filler.prepare(weights)

    def retire(self, weights: Weights) -> int:
        """Evict all of `weights`, what no loader has seen yet included."""
        size = super().retire(weights)
        self._filler.forget(weights)
        return size


class _Bringer(Filler):
    """Fills chunks by having the OS bring mapped files into memory: its own page cache."""

    def __init__(self, flexmem: FlexMem) -> None:
        super().__init__(flexmem, sampling=False)
        self._size = flexmem.chunk
        self.files: dict[Arena, CachedFile] = {}

    def ask(self, size: int, minimum: int) -> None:
        """Ask for nothing: the page cache is the OS's own."""

    def fill(self, weights: Weights, chunk: int, commit: Callable[[Arena, int], bool]) -> Cost | None:
        """Bring one chunk; `commit` is not asked, since the memory is the OS's own."""
        del commit
        part, index, length = weights.locate(chunk)
        began = time.perf_counter()
        self.files[weights.parts[part].arena].bring(index * self._size, self._size)
        return Cost(0.0, time.perf_counter() - began, 0.0, length)

    def release(self, arena: Arena, offset: int, length: int, *, keep_grants: bool = False) -> int:
        """Drop pages of a file; there are no grants to keep."""
        del keep_grants
        self.files[arena].drop(offset, length)
        return length

    def read_ahead(self, weights: Weights, chunks: Iterable[int]) -> None:
        """Ask the disk for pages of the files ahead of need."""
        for chunk in chunks:
            part, index, _ = weights.locate(chunk)
            self.files[weights.parts[part].arena].read_ahead(index * self._size, self._size)


class NwBase(Residency):
    """Weights in clear, mapped from files: kept by the OS between requests, and dropped by it.

    The first use of a model writes its files, nameless ones beside the images, and is not to be
    measured. An eviction drops pages as the OS would under pressure; the pipeline brings them back.
    """

    def __init__(self, flexmem: FlexMem, threads: int, folder: Path) -> None:
        self._filler = _Bringer(flexmem)
        super().__init__(flexmem, threads, self._filler)
        self._chunk_size, self._folder = flexmem.chunk, folder
        self._mapping = threading.Lock()

    def compute(self, weights: Weights, graph: GraphRun, stats: RestoreStats) -> None:
        """Run the graph over mapped files."""
        self._map(weights)
        super().compute(weights, graph, stats)

    def restore(self, weights: Weights, stats: RestoreStats) -> None:
        """Have the files in memory."""
        self._map(weights)
        super().restore(weights, stats)

    def prefetch(self, weights: Weights, chunks: Sequence[int]) -> None:
        """Do nothing: the OS knows of no workflows."""

    def retire(self, weights: Weights) -> int:
        """Drop the files; their arenas may be freed."""
        size = super().retire(weights)
        for part in weights.parts:
            file = self._filler.files.pop(part.arena, None)
            if file is not None:
                file.close()
        return size

    def _map(self, weights: Weights) -> None:
        with self._mapping:
            if weights.parts[0].arena in self._filler.files:
                return
            chunk = self._chunk_size
            buffer = memoryview(bytearray(chunk))
            files = [CachedFile(part.arena, self._folder) for part in weights.parts]
            for number in range(weights.count):
                part, index, length = weights.locate(number)
                weights.source.restore(part, index, buffer[:length])
                files[part].write(index * chunk, buffer[:length])
            for part, file in enumerate(files):
                file.map()
                self._filler.files[weights.parts[part].arena] = file
        absent = weights.table.count(ChunkState.ABSENT)
        assert absent == weights.count, "these weights were loaded before they were mapped"

    def missing(self, weights: Weights) -> Missing:
        """Return nothing: the page cache is the OS's own."""
        del weights
        return Missing(0, 0, 0)
