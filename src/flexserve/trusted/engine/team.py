"""The threads that compute graphs: how many, how they wait for each other, how long they lack a core."""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from flexserve.policy.thread_count import ThreadCount
from flexserve.trusted.engine import abi, tensors
from flexserve.trusted.engine.ggml import Ggml

_TRIAL_NODES = 16  # of a graph: when cores are in use, each node may take milliseconds
_SPLIT_KV = 512  # positions from which on llama.cpp has each thread attend to a part of them

_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Team:
    """The threads that compute for the thread to which this belongs: `most`, or as many as have cores.

    Where they do not `adapt`, or llama.cpp was built without OpenMP, they are always that many. What comes
    out is the same in any case, to the bit.
    """

    def __init__(self, ggml: Ggml, most: int, *, adapt: bool) -> None:
        self._parallel, self._most = ggml.openmp_parallel, most
        self._adapts = adapt and most > 1 and self._parallel is not None
        self._count = ThreadCount(most)
        self._clocks: list[int] = []  # of the CPU time of each thread
        self._gathered: int | None = None  # the CPU that the others are bound to
        self._current_cpu = ctypes.CDLL(None).sched_getcpu
        self._crowd: _Crowd | None = None
        self._graph, self._divided = 0, [0]  # which has been looked at last, and what was found there

    @property
    def count(self) -> int:
        """Threads that compute now what does not depend on their number."""
        return self._count.count

    def parts(self, graph: abi.Graph) -> Iterator[tuple[abi.Graph, int]]:
        """Yield what is to be computed of `graph`, one after the other, and by how many threads."""
        start, nodes = 0, graph.n_nodes
        while start < nodes:
            stop, threads = self._next(graph, start) if self._adapts else (nodes, self._most)
            yield (graph if stop - start == nodes else graph.slice(start, stop)), threads
            start = stop

    @contextlib.contextmanager
    def computing(self, threads: int) -> Iterator[None]:
        """Learn from how so many threads compute inside."""
        if not self._adapts or threads == 1 or self._crowd is not None:
            yield
            return
        before, began = self._spent(threads), time.perf_counter()
        yield
        now = time.perf_counter()
        pairs = zip(before, self._spent(threads), strict=True)
        self._count.computed(now - began, sum(max(0.0, now - began - (b - a)) for a, b in pairs), now)

    def _next(self, graph: abi.Graph, start: int) -> tuple[int, int]:
        """Return the end of the part that begins at node `start`, and how many threads it gets."""
        self._count.begin(time.perf_counter())
        count, nodes = self._count.count, graph.n_nodes
        if count == self._most:
            self._disperse()
            return (min(nodes, start + _TRIAL_NODES) if self._count.trial else nodes), count
        divided = self._divided_nodes(graph)
        place = bisect.bisect_left(divided, start)
        if place == len(divided):
            return nodes, count
        if divided[place] > start:
            return divided[place], count
        if count == 1:
            self._gather()
        if self._crowd is None:
            spare = max(0, len(os.sched_getaffinity(0)) - self._most)
            self._crowd = _Crowd(lambda: self._run(lambda: None, spare + 2))
        return start + 1, self._most

    def _divided_nodes(self, graph: abi.Graph) -> list[int]:
        """Return the nodes whose result depends on how many threads compute it, in order.

        When a single token attends to many, each thread adds up its part of them.
        """
        if not graph.uid or graph.uid != self._graph:
            nodes = tensors.read((ctypes.c_uint64 * graph.n_nodes).from_address(graph.nodes))
            attention = np.flatnonzero(nodes["op"] == abi.OP_FLASH_ATTN)
            queries, keys = (
                tensors.read(nodes["src"][attention, source].tolist())["ne"] for source in (0, 1)
            )
            single = (queries[:, 1] == 1) & (queries[:, 3] == 1)
            self._divided = attention[single & (keys[:, 1] >= _SPLIT_KV)].tolist()
            self._graph = graph.uid
        return self._divided

    # ---- OpenMP ------------------------------------------------------------------------------------

    def _gather(self) -> None:
        """Have the other threads run where this one does: it waits for them, and other cores are in use."""
        cpu = self._current_cpu()
        if cpu != self._gathered:
            self._place({cpu})
            self._gathered = cpu

    def _disperse(self) -> None:
        if self._crowd is not None:
            self._crowd.end()
            self._crowd = None
        if self._gathered is not None:
            self._place(os.sched_getaffinity(0))
            self._gathered = None

    def _place(self, cpus: set[int]) -> None:
        """Have the other threads run on `cpus` only."""
        mine = threading.get_native_id()

        def move() -> None:
            if threading.get_native_id() != mine:
                with contextlib.suppress(OSError):  # it is only a preference
                    os.sched_setaffinity(0, cpus)

        self._run(move, self._most)

    def _spent(self, threads: int) -> list[float]:
        """Return the CPU seconds of each thread. The process's own clock would be late by a tick of each."""
        if len(self._clocks) == threads:
            with contextlib.suppress(OSError):  # libgomp has replaced threads
                return [time.clock_gettime(clock) for clock in self._clocks]
        self._clocks = []
        self._run(lambda: self._clocks.append(time.pthread_getcpuclockid(threading.get_ident())), threads)
        return [time.clock_gettime(clock) for clock in self._clocks]

    def _run(self, work: Callable[[], None], threads: int) -> None:
        """Have each of a team of so many threads of the calling thread do `work`, which raises nothing."""
        assert self._parallel is not None
        self._parallel(_Body(lambda _: work()), None, threads, 0)


class _Crowd:
    """More OpenMP threads than there are CPUs, until `end`: then, says libgomp's manual, those that wait spin
    for 100 rounds only before they sleep. So one that rarely has something to do keeps no core from others.

    `assemble` makes a team of the thread that calls it.
    """

    def __init__(self, assemble: Callable[[], None]) -> None:
        self._assemble, self._over = assemble, threading.Event()
        threading.Thread(target=self._stay, name="crowd", daemon=True).start()

    def _stay(self) -> None:
        self._assemble()
        self._over.wait()

    def end(self) -> None:
        """Have the threads end soon."""
        self._over.set()
