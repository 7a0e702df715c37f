"""The shelf: models that are open, who is using them, and what each holds in memory.

Models are opened, used and closed by the engine thread alone. Recalls come from another thread
at any time. The shelf's lock is what keeps a recall from taking KV or scratch of a model that
is just being put to use; it is never held while a graph computes or a model opens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Iterable, Iterator

from flexserve.core.recall import Holding, Kind
from flexserve.errors import CallerError, FlexServeError
from flexserve.secure.engine.context import Context
from flexserve.secure.engine.model import Model
from flexserve.secure.engine.runtime import Engine
from flexserve.secure.engine.text import ChatTemplate, Vocabulary
from flexserve.secure.failures import failure_of
from flexserve.secure.models.store import Store
from flexserve.secure.residency import Residency
from flexserve.units import format_size
from flexserve.world.messages import ModelStatus

_MAX_OPEN = 8  # open models; an open model without weights costs its vocabulary, some 10 MB


@dataclasses.dataclass(slots=True)
class OpenModel:
    """A model ready for use. Fields change under the shelf's lock."""

    model: Model
    context: Context
    vocabulary: Vocabulary
    template: ChatTemplate
    running: bool = False
    last_used: float = 0.0


class Shelf:
    """Open models by name."""

    def __init__(self, engine: Engine, residency: Residency, store: Store, context: int) -> None:
        self._engine, self._residency, self._store = engine, residency, store
        self._context = context
        self._open: dict[str, OpenModel] = {}
        self._opening = ""
        self._failed: dict[str, FlexServeError] = {}
        self._pinned: frozenset[str] = frozenset()
        self.lock = threading.RLock()

    # ---- the engine thread ----------------------------------------------------------------------

    @contextlib.contextmanager
    def lease(self, name: str) -> Iterator[OpenModel]:
        """Have model `name` open and protected from recalls of KV and scratch inside the block.

        Raises UnknownModelError, StoredDataError, CallerError (larger than memory) and
        GrantRefusedError; the shelf stays usable.
        """
        entry = self._fetch(name)
        with self.lock:
            entry.running = True
        try:
            entry.context.prepare()
            yield entry
        except FlexServeError as error:
            self._note(name, error)
            raise
        else:
            self._failed.pop(name, None)
        finally:
            with self.lock:
                entry.running = False
                entry.last_used = time.monotonic()

    def release_idle(self, idle: float) -> float | None:
        """Give KV and scratch of models unused for `idle` seconds back.

        Returns the seconds until the next model's turn, None when nothing is left to give.
        """
        waits: list[float] = []
        with self.lock:
            for entry in self._open.values():
                if sum(self._committed(entry)) == 0:
                    continue
                wait = entry.last_used + idle - time.monotonic()
                if wait <= 0:
                    size = self._release_scratch(entry) + entry.context.release_kv()
                    self._engine.flexmem.report_returned(size + self._engine.flexmem.return_unused())
                else:
                    waits.append(wait)
        return min(waits, default=None)

    def close(self) -> None:
        """Close every model."""
        for name in list(self._open):
            self._put_away(name)

    def _fetch(self, name: str) -> OpenModel:
        """Return model `name` as the store has it now, opening it when need be."""
        with self._store.open(name) as sealed:
            manifest = sealed.manifest
        entry = self._open.get(name)
        if entry is not None and entry.model.manifest.model_id == manifest.model_id:
            return entry
        if entry is not None:  # removed, and another added under its name
            self._put_away(name)
        return self._take_in(name, manifest.size)

    def _take_in(self, name: str, size: int) -> OpenModel:
        self._opening = name
        try:
            require_room(name, size)
            model = Model(self._engine, self._store, name, _unseen)
            try:
                vocabulary = Vocabulary(model)
                template = ChatTemplate(model, vocabulary)
                context = Context(model, self._residency, self._context)
            except BaseException:
                model.close()
                raise
        except FlexServeError as error:
            self._note(name, error)
            raise
        finally:
            self._opening = ""
        entry = OpenModel(model, context, vocabulary, template, last_used=time.monotonic())
        while len(self._open) >= _MAX_OPEN:
            self._put_away(min(self._open, key=lambda n: self._open[n].last_used))
        with self.lock:
            self._open[name] = entry
        return entry

    def _put_away(self, name: str) -> None:
        with self.lock:
            entry = self._open.pop(name)
        self._engine.flexmem.report_returned(self._residency.retire(entry.model.weights))
        entry.context.close()
        entry.model.close()

    def _note(self, name: str, error: FlexServeError) -> None:
        with self.lock:
            self._failed[name] = error

    # ---- any thread -------------------------------------------------------------------------------

    def pin(self, names: Iterable[str]) -> None:
        """Keep the weights of these models, and of no others, as long as anything else can be given up."""
        with self.lock:
            self._pinned = frozenset(names)

    def holdings(self) -> list[Holding]:
        """Return what open models hold. Call it under the lock to act on it."""
        found: list[Holding] = []
        with self.lock:
            for name, entry in self._open.items():
                kv, scratch = self._committed(entry)
                sizes = {Kind.SCRATCH: scratch, Kind.KV: kv, Kind.WEIGHTS: entry.model.weights.resident}
                found += [
                    Holding(name, kind, size, entry.running, entry.last_used)
                    for kind, size in sizes.items()
                    if size
                ]
        return found

    def give_up(self, name: str, kind: Kind, size: int) -> int:
        """Give about `size` bytes of one kind back to the OS; return the bytes that went.

        Under the lock; for weights of a running model also with the gate shut.
        """
        entry = self._open[name]
        if kind is Kind.SCRATCH:
            return self._release_scratch(entry)
        if kind is Kind.KV:
            return entry.context.release_kv()
        granules = -(-size // self._engine.flexmem.granule)
        weights = entry.model.weights
        return self._residency.evict(weights, weights.eviction_order()[:granules])

    # The engine's work area serves whichever model computes. It counts as scratch of the model that
    # runs or, when none does, ran last, so that no idle model's scratch takes it from a running one.

    def _has_work(self, entry: OpenModel) -> bool:
        latest = max(self._open.values(), key=lambda e: (e.running, e.last_used))
        return entry is latest

    def _committed(self, entry: OpenModel) -> tuple[int, int]:
        """Return the committed bytes of (KV cache, scratch and work area)."""
        kv, scratch = entry.context.committed()
        return kv, scratch + (self._engine.work_committed if self._has_work(entry) else 0)

    def _release_scratch(self, entry: OpenModel) -> int:
        work = self._engine.release_work() if self._has_work(entry) else 0
        return work + entry.context.release_scratch()

    def statuses(self) -> list[ModelStatus]:
        """Return one status for each model of the store, open or not."""
        with self.lock:
            return [
                self._status(manifest.name, manifest.size, self._open.get(manifest.name))
                for manifest in self._store.list()
            ]

    def _status(self, name: str, size: int, entry: OpenModel | None) -> ModelStatus:
        error = self._failed.get(name)
        failure = failure_of(error) if error is not None else None
        if entry is None:
            state = "loading" if name == self._opening else "unloaded"
            return ModelStatus(name, state, size, 0, 0, 0, False, failure)
        weights, (kv, scratch) = entry.model.weights, self._committed(entry)
        resident = weights.resident
        state = "loaded" if weights.whole else "partial" if resident else "unloaded"
        return ModelStatus(name, state, weights.size, resident, kv, scratch, entry.running, failure)


def require_room(name: str, size: int) -> None:
    """Raise CallerError when model `name`, of `size` bytes, is larger than the machine's memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise CallerError(
            f"{name} needs {format_size(size)}; this machine has {format_size(memory)} of memory.",
            hint="Use a smaller model or a stronger quantization.",
            code="model_too_large",
        )


def _unseen(_done: int, _total: int) -> None:
    """Nobody watches the making of an image inside a request."""
