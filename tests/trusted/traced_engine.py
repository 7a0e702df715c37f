"""The real engine, watched as the OS and the disk see it, in a process of its own: the hooks are for good."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Self

from real_engine import RealEngine

from flexserve.harness.shapes import SHAPES, Shape
from flexserve.harness.synth import write_synthetic

DENSE = SHAPES["small-llama"]
WIDE = dataclasses.replace(DENSE, name="small-wide", vocabulary=8192)
TIED = dataclasses.replace(WIDE, name="small-wide-tied", tied=True)
EXPERTS = dataclasses.replace(SHAPES["small-moe"], name="many-experts", layers=2, experts=128, ffn=64)

CONTEXT = 128  # tokens
_CHUNK = 16384
_QUANT = "q8_0"

Event = tuple[object, ...]
Trace = dict[str, list[Event]]  # what each thread did, in its order


@dataclasses.dataclass(frozen=True)
class Ask:
    """What to compute; `there` is the part of the weights in memory before, `room` the part that fits."""

    prompt: Sequence[int]
    answer: Sequence[int] = ()
    there: float = 0.0
    room: float = 1.0


class TracedEngine:
    """Runs prompts in another process, with one loader on one core, and returns what was seen of them.

    On one core the loader stands still while the engine computes, so that the trace of a prompt is the same
    each time; with more of either, threads overtake each other from run to run. A context manager.
    """

    def __init__(self, folder: Path, shape: Shape) -> None:
        path = folder / f"{shape.name}.gguf"
        write_synthetic(path, shape, _QUANT)
        self.vocabulary = shape.vocabulary
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_start, initargs=(folder, path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def trace(self, ask: Ask) -> Trace:
        """Return the commits, reads, releases and requests for memory that `ask` leads to."""
        return self._pool.submit(_trace, ask).result()


def _start(folder: Path, path: Path) -> None:
    global _rig  # noqa: PLW0603  # the process is for this alone
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    _rig = _Rig(folder, path)


def _trace(ask: Ask) -> Trace:
    return _rig.trace(ask)


class _Recorder:
    """Records events inside `with`."""

    def __init__(self) -> None:
        self._on = False
        self.trace: Trace = {}

    def __enter__(self) -> None:
        self._on, self.trace = True, {}

    def __exit__(self, *_how: object) -> None:
        self._on = False

    def note(self, *event: object) -> None:
        if self._on:
            self.trace.setdefault(threading.current_thread().name, []).append(event)


class _Rig:
    def __init__(self, folder: Path, path: Path) -> None:
        from flexserve.platforms.linux.secure_memory import PlainMemory
        from flexserve.trusted.weights import loader

        # How long compute waits at once depends on how fast the disk is, as far as it is measured.
        loader.stretch = lambda missing, **_measured: missing  # type: ignore[attr-defined]
        self.recorder = _Recorder()
        self.granter = _Granter(self.recorder)
        self.memory = _Memory(PlainMemory(_CHUNK), self.recorder)
        real = RealEngine(folder, memory=self.memory, granter=self.granter)
        self.flexmem, self.engine, self.residency = real.flexmem, real.engine, real.residency
        self.model, self.context = real.open(path, CONTEXT)
        self.model.weights.source = _Source(self.model.weights.source, self.recorder)
        self.trace(Ask([1]))  # learns the order in which graphs use the weights

    def trace(self, ask: Ask) -> Trace:
        """Compute `ask` from a state that is the same each time."""
        from flexserve.trusted.engine.context import Span
        from flexserve.trusted.weights.job import RestoreStats

        weights = self.model.weights
        self._give_all_back()
        self.granter.limit = 1 << 40
        if ask.there:
            self.residency.restore(weights, RestoreStats())
            order = weights.eviction_order()
            self._returned(self.residency.evict(weights, order[: int(len(order) * (1 - ask.there))]))
        self.context.prepare()
        self.context.take(0, keep=0)
        if ask.room < 1:
            self._returned(self.flexmem.return_unused())
            self.granter.limit = self.granter.granted + int(weights.count * ask.room) * _CHUNK
        with self.recorder:
            self.context.decode([Span(0, 0, ask.prompt)])
            for position, token in enumerate(ask.answer, len(ask.prompt)):
                self.context.decode([Span(0, position, [token])])
            self.recorder.note("resident", self.memory.resident())
        self.flexmem.check()
        return self.recorder.trace

    def _give_all_back(self) -> None:
        self._returned(
            self.residency.retire(self.model.weights)
            + self.context.release([0])
            + self.context.release_scratch()
            + self.engine.release_work()
            + self.flexmem.return_unused()
        )

    def _returned(self, size: int) -> None:
        self.granter.returned(size)


class _Granter:
    """A normal world that grants up to `limit` bytes."""

    def __init__(self, recorder: _Recorder) -> None:
        self.limit, self.granted, self._recorder = 1 << 40, 0, recorder
        self._lock = threading.Lock()

    def request(self, size: int, minimum: int) -> int:
        with self._lock:
            granted = min(size, max(0, self.limit - self.granted)) // _CHUNK * _CHUNK
            self.granted += granted
        self._recorder.note("request", size, minimum, granted)
        return granted

    def returned(self, size: int, reason: str = "") -> None:
        with self._lock:
            self.granted -= size
        if size:
            self._recorder.note("returned", size)


class _Memory:
    """A SecureMemory that tells what becomes of the arenas of another."""

    def __init__(self, memory, recorder: _Recorder) -> None:
        self._memory, self._recorder = memory, recorder
        self._arenas: list[object] = []
        self.chunk, self.protection = memory.chunk, memory.protection
        self.view, self.resident = memory.view, memory.resident
        self.trim, self.ready = memory.trim, memory.ready

    def reserve(self, size: int):
        arena = self._memory.reserve(size)
        self._arenas.append(arena)
        return arena

    def commit(self, arena, offset: int, length: int) -> None:
        self._note("commit", arena, offset, length)
        self._memory.commit(arena, offset, length)

    def release(self, arena, offset: int, length: int, *, keep: bool = False) -> None:
        self._note("release", arena, offset, length)
        self._memory.release(arena, offset, length, keep=keep)

    def free(self, arena) -> None:
        self._note("free", arena, 0, arena.size)
        self._memory.free(arena)

    def _note(self, what: str, arena, offset: int, length: int) -> None:
        self._recorder.note(what, self._arenas.index(arena), offset, length)


class _Source:
    """A WeightSource that tells what is read of another."""

    def __init__(self, source, recorder: _Recorder) -> None:
        self._source, self._recorder = source, recorder

    def restore(self, buffer: int, index: int, target: memoryview) -> float:
        self._recorder.note("read", buffer, index)
        return self._source.restore(buffer, index, target)

    def read(self, buffer: int, index: int, target: memoryview) -> None:
        self._recorder.note("read", buffer, index)
        self._source.read(buffer, index, target)

    def decrypt(self, buffer: int, index: int, target: memoryview) -> float:
        return self._source.decrypt(buffer, index, target)

    def prefetch(self, buffer: int, index: int, count: int) -> None:
        self._recorder.note("read ahead", buffer, index, count)
        self._source.prefetch(buffer, index, count)


_rig: _Rig
