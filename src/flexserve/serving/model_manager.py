"""Which models are open, how long they are kept, and what went wrong with each."""

from __future__ import annotations

import math
import threading
import time

from flexserve.errors import FlexServeError
from flexserve.protocol.failures import failure_of
from flexserve.protocol.statuses import MAX_CHUNK_RUNS, ModelStatus
from flexserve.protocol.trusted_app import Kind, ModelMemory, Stored, TrustedApp

_MAX_OPEN = 8  # open models; an open model without weights costs its vocabulary, some 10 MB
_SEAL_AT_END = 2.0  # seconds that sealing may take before a model closes


class ModelManager:
    """Opens and closes models. Methods belong to the engine thread, but for those at the end.

    `idle`: seconds after its last use that a model's KV and scratch go back, unless its last user said
    otherwise.
    """

    def __init__(self, app: TrustedApp, idle: float) -> None:
        self._app, self._idle = app, idle
        self._used: dict[str, tuple[float, float | None]] = {}  # when (monotonic seconds), and its keep_alive
        self._failed: dict[str, FlexServeError] = {}
        self._gone: dict[str, str] = {}  # why weights of models went, in words
        self._opening = ""
        self._all_to_close = False
        self._lock = threading.Lock()  # guards these four

    # ---- the engine thread ------------------------------------------------------------------------

    def fetch(self, model: str) -> None:
        """See to it that `model` is open as the store has it now; others close when too many are.

        Raises UnknownModelError, StoredDataError, CallerError (larger than memory) and GrantRefusedError.
        """
        opened = {memory.name: memory for memory in self._app.memory()}
        if model in opened and (opened[model].running or self._app.is_open(model)):
            return
        if model in opened:  # removed, and another added under its name
            self._close(model, 0.0)
        self._opening = model
        try:
            self._app.open(model)
        except FlexServeError as error:
            self.record(model, error)
            raise
        finally:
            self._opening = ""
        self.used(model, None)
        self._close_least_used(keep=model)

    def _close_least_used(self, keep: str) -> None:
        opened = self._app.memory()
        idle = sorted(
            (memory.name for memory in opened if not memory.running and memory.name != keep),
            key=self.last_used,
        )
        for model in idle[: max(0, len(opened) - _MAX_OPEN)]:
            self.went(model, f"{_MAX_OPEN} others were used since")
            self._close(model, time.monotonic() + _SEAL_AT_END)

    def _close(self, model: str, seal_until: float) -> None:
        self._app.close(model, seal_until)
        with self._lock:
            self._used.pop(model, None)

    def used(self, model: str, keep_alive: float | None, *, looked: bool = False) -> None:
        """Record that a request of `model` ended; `keep_alive`: how long its sender wants it kept.

        `looked`: it took nothing of what the model has in memory, so what was said before still holds.
        """
        with self._lock:
            if not looked or model not in self._used:
                self._used[model] = time.monotonic(), keep_alive

    def tidy(self) -> float | None:
        """Give back what was kept long enough; return the seconds until there is more (None: nothing)."""
        if self._all_to_close:
            self._all_to_close = False
            self._close_idle()
        waits = [self._let_go(memory) for memory in self._app.memory() if not memory.running]
        return min((wait for wait in waits if wait is not None), default=None)

    def _let_go(self, memory: ModelMemory) -> float | None:
        """Give back what was kept long enough of a model; return the seconds until its turn (None: never)."""
        wait = self._wait(memory)
        if wait is None or wait > 0:
            return wait
        _, keep = self._used.get(memory.name, (0.0, None))
        weights = memory.weights if keep is not None else 0
        why = "stopped" if keep == 0 else f"idle for {self._idle if keep is None else keep:.0f} s"
        if weights:
            self.went(memory.name, why)
        kinds = {Kind.SCRATCH: memory.scratch, Kind.KV: memory.idle_kv, Kind.WEIGHTS: weights}
        size = sum(
            self._app.evict(memory.name, kind, size, keep=False) for kind, size in kinds.items() if size
        )
        self._app.report_returned(size + self._app.return_unused(), f"{memory.name}: {why}")
        return None

    def _wait(self, memory: ModelMemory) -> float | None:
        """Return the seconds until what a model keeps goes back unasked; None: nothing of it does."""
        with self._lock:
            _, keep = self._used.get(memory.name, (0.0, None))
        weights = memory.weights if keep is not None else 0
        if memory.running or keep == -1 or memory.idle_kv + memory.scratch + weights == 0:
            return None
        return self.due(memory.name) - time.monotonic()

    def close(self) -> None:
        """Close every model; seal its KV first, within a moment."""
        deadline = time.monotonic() + _SEAL_AT_END
        for memory in self._app.memory():
            self._close(memory.name, deadline)

    def _close_idle(self) -> None:
        deadline = time.monotonic() + _SEAL_AT_END
        for memory in self._app.memory():
            if not memory.running:
                self.went(memory.name, "the OS wanted everything")
                self._close(memory.name, deadline)

    # ---- any thread -------------------------------------------------------------------------------

    def close_idle(self) -> None:
        """Have every model that no request uses closed at the next `tidy`: what opening it took goes, too."""
        self._all_to_close = True

    def due(self, model: str) -> float:
        """Return when what a model keeps goes back unasked (monotonic seconds; infinite: never)."""
        with self._lock:
            last, keep = self._used.get(model, (0.0, None))
        return math.inf if keep == -1 else last + (self._idle if keep is None else keep)

    def last_used(self, model: str) -> float:
        """Return when a request of `model` ended last (monotonic seconds)."""
        with self._lock:
            return self._used.get(model, (0.0, None))[0]

    def last_ended(self) -> float:
        """Return when a request of an open model ended last (monotonic seconds)."""
        with self._lock:
            return max((when for when, _ in self._used.values()), default=0.0)

    def is_kept(self, model: str, now: float) -> bool | None:
        """Return whether the last user of `model` wants it kept at `now`; None: as usual."""
        with self._lock:
            last, keep = self._used.get(model, (0.0, None))
        return None if keep is None else keep == -1 or now < last + keep

    def went(self, model: str, why: str) -> None:
        """Record why weights of `model` are not in memory any more, in words."""
        with self._lock:
            self._gone[model] = why

    def record(self, model: str, error: FlexServeError | None) -> None:
        """Keep the last error of a model, for its status; None: it is well."""
        with self._lock:
            if error is None:
                self._failed.pop(model, None)
            else:
                self._failed[model] = error

    def statuses(self) -> list[ModelStatus]:
        """Return one status for each model of the store, open or not."""
        opened = {memory.name: memory for memory in self._app.memory()}
        return [self._status(model, opened.get(model.name)) for model in self._app.stored()]

    def _status(self, model: Stored, memory: ModelMemory | None) -> ModelStatus:
        with self._lock:
            error, gone = self._failed.get(model.name), self._gone.get(model.name, "")
        wait = self._wait(memory) if memory is not None else None
        state = "loading" if model.name == self._opening else "unloaded"
        chunks = self._app.chunks(model.name)
        if memory is not None and memory.weights:
            state = "loaded" if memory.whole else "partial"
        return ModelStatus(
            name=model.name,
            state=state,
            weights=memory.size if memory is not None else model.size,
            resident=memory.weights if memory is not None else 0,
            kv=memory.idle_kv + memory.used_kv if memory is not None else 0,
            scratch=memory.scratch if memory is not None else 0,
            running=memory is not None and memory.running,
            error=failure_of(error) if error is not None else None,
            abilities=model.abilities,
            heap=memory.heap if memory is not None else 0,
            trial=model.trial,
            description=model.description,
            chunks=tuple(chunks) if len(chunks) <= MAX_CHUNK_RUNS else (),
            leaves=None if wait is None else 1000 * max(0.0, wait),
            gone="" if state == "loaded" else gone,
        )
