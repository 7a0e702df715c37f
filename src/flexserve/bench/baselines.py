"""What FlexServe is measured against: the same engine with another policy for its weights.

    strawman      secure memory allocated whole for each request; load all, decrypt all, then compute
    strawman-opt  the same memory policy; loading and decrypting overlap with compute
    nw-base       unprotected: weights in clear in files that the OS keeps in its page cache

Model files, engine, loader threads, order of loading and compute are those of FlexServe; only what
stands here differs. That the memory of a request is freed after it is a recall of everything, made
by whoever measures. Each phase of the strawmen uses as many threads as FlexServe's loaders are, so
they lose nothing but the overlap and what could have been kept. `flexserve serve` offers none of these.
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
from flexserve.trusted.weights.cpu_arbiter import yield_to_compute
from flexserve.trusted.weights.fill import Cost, Filler
from flexserve.trusted.weights.job import RestoreJob, RestoreStats
from flexserve.trusted.weights.residency import READ_AHEAD, GraphRun, Residency
from flexserve.trusted.weights.states import ChunkEvent, ChunkState

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


class StrawmanOpt(Residency):
    """All the memory of the weights is there before the first byte of them is read."""

    def __init__(self, flexmem: FlexMem, threads: int) -> None:
        super().__init__(flexmem, threads, Filler(flexmem, sampling=False))
        # At the loaders' priority, for other programs' sake: a baseline gets no larger share of the cores.
        self._pool = ThreadPoolExecutor(threads, "baseline", initializer=yield_to_compute)

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
        return all(self._flexmem.committed(part.arena) == part.arena.size for part in weights.parts)

    def _allocate(self, weights: Weights, stats: RestoreStats) -> None:
        """Commit every chunk in one go and touch it. Raises GrantRefusedError: it is all or nothing."""
        flexmem = self._flexmem
        # What a request that was broken off has left: baselines keep nothing.
        left = self.retire(weights) + sum(flexmem.release_all(part.arena) for part in weights.parts)
        flexmem.report_returned(left)
        began = time.perf_counter()
        size = sum(part.arena.size for part in weights.parts)
        flexmem.grant(size, size)
        for part in weights.parts:
            flexmem.commit(part.arena, 0, part.arena.size)
        stats.allocate += time.perf_counter() - began
        stats.allocate += sum(self._each(weights, self._filler.touch))

    def _each(self, weights: Weights, work: Callable[[memoryview], float]) -> list[float]:
        """Do `work` on the memory of every chunk, with all threads; return the results."""

        def one(chunk: int) -> float:
            part, index, length = weights.locate(chunk)
            offset = index * self._flexmem.chunk
            return work(self._flexmem.view(weights.parts[part].arena, offset, length))

        return list(self._pool.map(one, range(weights.count)))

    def _ask_for(self, job: RestoreJob) -> None:
        """Ask for nothing: the memory is there."""

    def _commit(self, job: RestoreJob, position: int, arena: Arena, offset: int) -> bool:
        # Unless a recall took it from under the request.
        return self._flexmem.holds(arena, offset) or super()._commit(job, position, arena, offset)


class Strawman(StrawmanOpt):
    """Nothing overlaps: allocate all, load all, decrypt all; then the graph finds its weights whole."""

    def _allocate(self, weights: Weights, stats: RestoreStats) -> None:
        super()._allocate(weights, stats)
        chunks = weights.usual or range(weights.count)

        def read(chunk: int) -> float:
            part, index, _ = weights.locate(chunk)
            began = time.perf_counter()
            weights.source.read(part, index, self._target(weights, chunk))
            return time.perf_counter() - began

        def decrypt(chunk: int) -> float:
            part, index, _ = weights.locate(chunk)
            return weights.source.decrypt(part, index, self._target(weights, chunk))

        stats.load += sum(self._pool.map(read, chunks))
        stats.decrypt += sum(self._pool.map(decrypt, chunks))
        stats.restored += weights.size
        with self._changed:
            weights.table.apply(ChunkEvent.CLAIM, range(weights.count))
            weights.table.apply(ChunkEvent.LOADED, range(weights.count))

    def _target(self, weights: Weights, chunk: int) -> memoryview:
        part, index, length = weights.locate(chunk)
        return self._flexmem.view(weights.parts[part].arena, index * self._flexmem.chunk, length)


class _Bringer(Filler):
    """Fills chunks by having the OS bring a mapped file into memory."""

    def __init__(self, flexmem: FlexMem, files: dict[Arena, CachedFile]) -> None:
        super().__init__(flexmem, sampling=False)
        self._files = files

    def fill(self, weights: Weights, chunk: int, commit: Callable[[Arena, int], bool]) -> Cost | None:
        """Bring one chunk; `commit` is not asked, since the memory is the OS's own."""
        del commit
        part, index, length = weights.locate(chunk)
        began = time.perf_counter()
        size = self._flexmem.chunk
        self._files[weights.parts[part].arena].bring(index * size, size)
        return Cost(0.0, time.perf_counter() - began, 0.0, length)


class NwBase(Residency):
    """Weights in clear, mapped from files: kept by the OS between requests, and dropped by it.

    The first use of a model writes its files, nameless ones beside the images, and is not to be
    measured. An eviction drops pages as the OS would under pressure; the pipeline brings them back.
    """

    def __init__(self, flexmem: FlexMem, threads: int, folder: Path) -> None:
        self._files: dict[Arena, CachedFile] = {}
        self._folder = folder
        self._mapping = threading.Lock()
        super().__init__(flexmem, threads, _Bringer(flexmem, self._files))

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

    def evict(self, weights: Weights, chunks: Iterable[int], *, keep_grants: bool = False) -> int:
        """Drop pages of the files; there are no grants to keep."""
        del keep_grants
        return super().evict(weights, chunks)

    def retire(self, weights: Weights) -> int:
        """Drop the files; their arenas may be freed."""
        size = super().retire(weights)
        for part in weights.parts:
            file = self._files.pop(part.arena, None)
            if file is not None:
                file.close()
        return size

    def _map(self, weights: Weights) -> None:
        with self._mapping:
            if weights.parts[0].arena in self._files:
                return
            chunk = self._flexmem.chunk
            buffer = memoryview(bytearray(chunk))
            files = [CachedFile(part.arena, self._folder) for part in weights.parts]
            for number in range(weights.count):
                part, index, length = weights.locate(number)
                weights.source.restore(part, index, buffer[:length])
                files[part].write(index * chunk, buffer[:length])
            for part, file in enumerate(files):
                file.map()
                self._files[weights.parts[part].arena] = file
        absent = weights.table.count(ChunkState.ABSENT)
        assert absent == weights.count, "these weights were loaded before they were mapped"

    def missing(self, weights: Weights) -> Missing:
        """Return nothing: the page cache is the OS's own."""
        del weights
        return Missing(0, 0, 0)

    def _ask_for(self, job: RestoreJob) -> None:
        """Ask for nothing: the page cache is the OS's own."""

    def _release(self, arena: Arena, offset: int, length: int) -> int:
        self._files[arena].drop(offset, length)
        return length

    def _read_ahead(self, job: RestoreJob, start: int) -> None:
        for chunk in job.plan.order[start : start + READ_AHEAD]:
            part, index, _ = job.weights.locate(chunk)
            size = self._flexmem.chunk
            self._files[job.weights.parts[part].arena].read_ahead(index * size, size)
