"""Residency: which chunks of a model's weights are in memory, and bringing them back in time.

The plain loop is `compute`: make a plan from the graph, let the loader follow it, and run each stretch
of nodes as soon as what it reads is there. Where compute has every core, loaders stand still while it
runs, and only the disk goes on.

When the normal world grants less than the graph needs, the loader streams (trusted.weights.streaming).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

from flexserve.protocol.trusted_app import Missing
from flexserve.trusted.memory.flexmem import FlexMem
from flexserve.trusted.weights.chunks import Weights
from flexserve.trusted.weights.fill import Filler
from flexserve.trusted.weights.gate import Gate
from flexserve.trusted.weights.job import RestoreJob, RestoreStats
from flexserve.trusted.weights.loader import WINDOW, Loader
from flexserve.trusted.weights.plan import Needs, usual_order
from flexserve.trusted.weights.states import ChunkState


class GraphRun(Protocol):
    """One run over a compute graph, as the engine's hook presents it."""

    nodes: int
    stride: int  # nodes per slice at most: bounds how long a recall waits

    def needs(self) -> Needs:
        """Walk the graph and return what it reads of the weights."""

    def run(self, start: int, stop: int) -> None:
        """Compute nodes [start, stop)."""


class Residency:
    """The gate, the loader, and the plain loop that computes a graph over evicted weights."""

    def __init__(self, flexmem: FlexMem, threads: int, filler: Filler | None = None) -> None:
        """`threads`: those of compute, and of each of the loader's queues. The filler is closed with this."""
        self.gate = Gate()
        self._chunk = flexmem.chunk
        self._loader = Loader(flexmem, filler or Filler(flexmem), threads)

    def close(self) -> None:
        """Stop the loader; chunks stay as they are."""
        self._loader.close()

    # ---- compute ---------------------------------------------------------------------------

    def compute(self, weights: Weights, graph: GraphRun, stats: RestoreStats) -> None:
        """Run the whole graph, restoring what it reads. Mutates weights and stats.

        Raises what the restore raised (StoredDataError, GrantRefusedError) or the graph; a
        chunk that failed authentication is never seen by a node.
        """
        position, needs = 0, None
        if not weights.usual:  # learned while all is there, too: it says what a recall takes first
            needs = self._needs(weights, graph)
            weights.usual = usual_order(needs, weights.count)
        while position < graph.nodes:
            epoch = weights.table.epoch  # read first: a recall after this line is seen at the gate
            if weights.whole:
                position = self._slice_if(weights, epoch, graph, position, graph.nodes)
                continue
            needs = needs or self._needs(weights, graph)
            job = self._loader.start(weights, needs, position, stats)
            try:
                position = self._follow(job, graph, position)
            except BaseException:
                self._loader.stop(job)
                raise

    @staticmethod
    def _needs(weights: Weights, graph: GraphRun) -> Needs:
        """Walk the graph; record how much of the weights it reads."""
        needs = graph.needs()
        weights.read = max(weights.read, int(np.count_nonzero(np.bincount(needs.chunk))))
        return needs

    def restore(self, weights: Weights, stats: RestoreStats) -> None:
        """Bring all weights into memory, without computing. Mutates weights and stats; raises as compute."""
        everything = weights.usual or range(weights.count)
        needs = Needs(1, np.zeros(weights.count, np.int32), np.fromiter(everything, np.int32, weights.count))
        while not weights.whole:
            job = self._loader.start(weights, needs, 0, stats)
            try:
                self._loader.wait_beyond(job, 0)
            except BaseException:
                self._loader.stop(job)
                raise

    def _follow(self, job: RestoreJob, graph: GraphRun, position: int) -> int:
        """Compute along the job; return the node reached when done or when a recall took something."""
        while position < graph.nodes and not job.stale:
            ready = self._loader.wait_beyond(job, position)
            position = self._slice_if(job.weights, job.epoch, graph, position, ready)
        return position

    def _slice_if(self, weights: Weights, epoch: int, graph: GraphRun, start: int, ready: int) -> int:
        """Run one slice unless a recall came first; return the node reached.

        A recall that found nothing to take ends the wait for a job, too: then nothing is ready yet.
        """
        with self.gate.slice():
            if weights.table.epoch != epoch or ready <= start:
                return start
            stop = min(ready, start + graph.stride)
            with self._loader.computing():
                graph.run(start, stop)
            return stop

    def resting(self) -> AbstractContextManager[None]:
        """Leave the cores to the loader while a slice that runs waits for another engine."""
        return self._loader.resting()

    def cancel(self) -> None:
        """Make a compute that waits for memory raise CancelledError now."""
        self._loader.cancel()

    # ---- memory ----------------------------------------------------------------------------

    def expecting(self) -> AbstractContextManager[None]:
        """Keep what is granted inside the block for the foreground: a prefetch takes none of it."""
        return self._loader.expecting()

    def missing(self, weights: Weights) -> Missing:
        """Return the memory that bringing in all of `weights` takes, and what its graphs read of that."""
        if weights.whole:
            return Missing(0, 0, 0)
        absent = weights.count - weights.table.count(ChunkState.RESIDENT)
        needed = max(0, absent - (weights.count - (weights.read or weights.count)))
        size = needed * self._chunk
        return Missing(absent * self._chunk, size, min(size, WINDOW * self._chunk))

    def evict(self, weights: Weights, chunks: Iterable[int], *, keep_grants: bool = False) -> int:
        """Give the memory of resident `chunks` back to the OS; return the bytes. Mutates weights.

        With `keep_grants` it stays granted, for others of us to use; nothing goes on prefetching
        then, which would take it. For weights of a running request, call it with the gate shut.
        """
        return self._loader.evict(weights, chunks, keep_grants=keep_grants)

    def retire(self, weights: Weights) -> int:
        """Evict all of `weights`, and wait until no loader touches them any more; return the bytes.

        For the engine thread, which may then free their arenas and close their source.
        """
        return self._loader.retire(weights)

    # ---- prefetch --------------------------------------------------------------------------

    def prefetch(self, weights: Weights, chunks: Sequence[int]) -> None:
        """Bring `chunks` in, in this order, while no request has anything to load.

        Returns at once. Replaces an older prefetch (with no chunks: ends it). `evict` and `retire`
        of these weights end it, too, and so, silently, does a refused grant or damaged data.
        """
        self._loader.prefetch(weights, chunks)

    def end_prefetch(self) -> None:
        """End a prefetch, of whatever weights; what it brought in stays."""
        self._loader.end_prefetch()

    @property
    def prefetching(self) -> bool:
        """Whether a prefetch is under way."""
        return self._loader.prefetching
