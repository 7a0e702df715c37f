"""The shelf: models that are open, who is using them, and what each holds in memory.

Models are opened, used and closed by the engine thread alone. Recalls come from another thread
at any time. The shelf's lock is what keeps a recall from taking KV or scratch that is just being
put to use; it is never held while a graph computes, a model opens or the normal world is asked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import msgspec

from flexserve.errors import CallerError, FlexServeError, GrantRefusedError
from flexserve.policy.recall import Holding, Kind
from flexserve.protocol.messages import Abilities, Embed, Generate, ModelStatus, Warm
from flexserve.trusted.engine.abilities import abilities_of, require
from flexserve.trusted.engine.context import Context
from flexserve.trusted.engine.model import Model
from flexserve.trusted.engine.runtime import Engine
from flexserve.trusted.engine.vocabulary import ChatTemplate, Vocabulary
from flexserve.trusted.failures import failure_of
from flexserve.trusted.kv.conversations import Conversations
from flexserve.trusted.kv.sealed import Counters, ParkedKv
from flexserve.trusted.kv.slots import Slot
from flexserve.trusted.memory.flexmem import REFUSED_HINT
from flexserve.trusted.store.image import DamagedImageError
from flexserve.trusted.store.manifest import Manifest
from flexserve.trusted.store.record import Record
from flexserve.trusted.store.store import Store
from flexserve.trusted.text.rendering.renderer import Renderer
from flexserve.trusted.weights.residency import Residency
from flexserve.units import format_size

R = TypeVar("R")

_MAX_OPEN = 8  # open models; an open model without weights costs its vocabulary, some 10 MB
_SEAL_AFTER = 1.0  # seconds after its last use that KV is sealed, when there is nothing else to do
# Ordinary memory, not Flex-Mem, that opening a model takes at its peak for each byte of its header: Python's
# list of the vocabulary, llama.cpp's copy of the header and its maps. Measured as the growth of VmHWM with
# SentencePiece vocabularies of 65,536 and 262,144 tokens: 17.1 and 17.2 (400 bytes a token), beside 7 MB that
# any model takes.
_HEAP_OF_HEADER = 18
_MOMENT = 0.05  # seconds
_SEAL_AT_END = 2.0  # seconds that sealing may take before a model closes


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What one model may have."""

    context: int  # tokens of a sequence
    sequences: int  # generated at once
    parked: int  # bytes of sealed KV on disk
    idle: float  # seconds after its last use that KV and scratch go back


@dataclasses.dataclass(slots=True, eq=False)
class OpenModel:
    """A model ready for use. Fields change under the shelf's lock."""

    model: Model
    context: Context
    vocabulary: Vocabulary
    template: ChatTemplate
    conversations: Conversations
    abilities: Abilities
    users: int = 0  # beside the busy slots
    last_used: float = 0.0
    keep: float | None = None  # seconds that its last user wants it kept; None: as the limits say

    @property
    def name(self) -> str:
        """The model's name in the store."""
        return self.model.name

    @property
    def running(self) -> bool:
        """Whether a request uses it now."""
        return self.users > 0 or self.conversations.busy

    @property
    def heap(self) -> int:
        """Bytes of ordinary memory that it took at most when it was opened, and has until it is closed."""
        return _heap_of(self.model.manifest)


class Shelf:
    """Open models by name."""

    def __init__(
        self, engine: Engine, residency: Residency, store: Store, limits: Limits, renderer: Renderer
    ) -> None:
        self._engine, self._residency, self._store = engine, residency, store
        self.limits, self._renderer = limits, renderer
        self._open: dict[str, OpenModel] = {}
        self._opening = ""
        self._failed: dict[str, FlexServeError] = {}
        self._pinned: frozenset[str] = frozenset()
        self.counters = Counters()
        self.counts_heap = False  # whether Flex-Mem is granted from the memory that the heap is in
        self.lock = threading.RLock()
        self._sealing = threading.Lock()  # held while an idle slot is sealed in a quiet moment

    # ---- the engine thread ----------------------------------------------------------------------

    def fetch(self, name: str) -> OpenModel:
        """Return model `name` as the store has it now, opening it when need be.

        Raises UnknownModelError, StoredDataError, CallerError (larger than memory) and
        GrantRefusedError; the shelf stays usable.
        """
        manifest = self._manifest(name)
        entry = self._open.get(name)
        if entry is not None and (entry.model.manifest.model_id == manifest.model_id or entry.running):
            return entry
        if entry is not None:  # removed, and another added under its name
            self._put_away(name)
        self._require_heap(manifest)
        return self._take_in(name, manifest.size)

    def _require_heap(self, manifest: Manifest) -> None:
        """See to it that the OS has the ordinary memory that opening a model takes; idle models make way.

        Raises GrantRefusedError when it has not; nothing of the model was read then but its manifest.
        """
        if not self.counts_heap:
            return
        size = _heap_of(manifest)
        flexmem = self._engine.flexmem
        had = flexmem.secure_grant(size, minimum=size)
        flexmem.report_returned(flexmem.return_unused())  # the heap takes it from the OS, not from us
        if had < size:
            raise GrantRefusedError(
                f"Opening {manifest.name} takes {format_size(size)} of memory, which were not granted.",
                hint=REFUSED_HINT,
            )

    def require(self, request: Generate | Embed | Warm) -> None:
        """Raise CallerError for what a model cannot do, by the record of it: before it is opened."""
        record = self._record(self._manifest(request.model))
        if record is not None:
            require(record.abilities, request)

    def _manifest(self, name: str) -> Manifest:
        with self._store.open(name) as sealed:
            return sealed.manifest

    def _record(self, manifest: Manifest) -> Record | None:
        """Return what this engine found out about a model; None: it has not tried."""
        record = self._store.record(manifest)
        return record if record is not None and record.engine == self._engine.identity else None

    def note_abilities(self, entry: OpenModel, abilities: Abilities) -> None:
        """Record what a model can do. Raises NormalWorldError when the disk refuses."""
        manifest = entry.model.manifest
        entry.abilities = abilities
        self._store.keep_record(
            manifest,
            Record(manifest.model_id, self._engine.identity, 1 + secrets.randbelow(1 << 52), abilities),
        )

    def fetch_ready(self, name: str) -> OpenModel | None:
        """Return model `name` if that takes no more than a moment: it is open, or its image is made.

        Raises as `fetch`.
        """
        with self._store.open(name) as sealed:
            manifest = sealed.manifest
        image = self._store.image_path(manifest, self._engine.fingerprint)
        return self.fetch(name) if name in self._open or image.exists() else None

    @contextlib.contextmanager
    def using(self, entry: OpenModel, keep: float | None = None) -> Iterator[None]:
        """Protect the scratch of `entry` from recalls inside the block; errors are noted as the model's."""
        with self.lock:
            entry.users += 1
        try:
            entry.context.prepare()
            yield
        except FlexServeError as error:
            if not isinstance(error, CallerError):
                self.note(entry.name, error)
            raise
        finally:
            with self.lock:
                entry.users -= 1
                self._used(entry, keep)

    def mended(self, entry: OpenModel, work: Callable[[], R]) -> R:
        """Do `work` with the weights of `entry`; when their image is damaged, mend it, and do it once more.

        Raises what `work` raises, and as `mend`.
        """
        try:
            return work()
        except DamagedImageError:
            self.mend(entry)
            return work()

    def mend(self, entry: OpenModel) -> None:
        """Make the damaged image of `entry` anew from its sealed file; none of its weights is in memory then.

        Between two graphs. KV stays, whoever it belongs to. Raises as `Model.remake_image`.
        """
        self._engine.flexmem.report_returned(self._residency.retire(entry.model.weights))
        entry.model.remake_image()

    @contextlib.contextmanager
    def holding(self, entry: OpenModel) -> Iterator[None]:
        """Keep `entry` open inside the block. Not to be entered but by the engine thread; left anywhere."""
        with self.lock:
            entry.users += 1
        try:
            yield
        finally:
            with self.lock:
                entry.users -= 1

    def claim(self, entry: OpenModel, owner: str, known: Sequence[int]) -> tuple[Slot, int] | None:
        """Have a slot for a request; see `Conversations.claim`. Give it back with `release`."""
        with self.using(entry, entry.keep):
            return entry.conversations.claim(owner, known)

    def release(self, entry: OpenModel, slot: Slot, keep: float | None, *, keep_kv: bool) -> None:
        """Take a slot back. `keep`: the request's keep_alive, seconds."""
        with self.lock:
            entry.conversations.release(slot, keep=keep_kv)
            self._used(entry, keep)

    def _used(self, entry: OpenModel, keep: float | None) -> None:
        entry.last_used, entry.keep = time.monotonic(), keep

    def tidy(self) -> float | None:
        """Seal KV, and give back what was kept long enough; return the seconds until there is more to do.

        None: there is nothing left to give. One thing at a time, so that a request need not wait.
        """
        now = time.monotonic()
        waits: list[float] = []
        for entry in list(self._open.values()):
            for slot in entry.conversations.unsealed():
                wait = slot.last_used + _SEAL_AFTER - now
                if wait <= 0:
                    with self._sealing:
                        entry.conversations.seal_idle(slot)
                    return 0
                waits.append(wait)
            turn = self._let_go(entry, now)
            if turn is not None:
                waits.append(turn)
        return min(waits, default=None)

    def close(self) -> None:
        """Close every model; seal its KV first, within a moment."""
        deadline = time.monotonic() + _SEAL_AT_END
        for name in list(self._open):
            self._put_away(name, deadline)

    def note(self, name: str, error: FlexServeError | None) -> None:
        """Keep the last error of a model, for its status; None: it is well."""
        with self.lock:
            if error is None:
                self._failed.pop(name, None)
            else:
                self._failed[name] = error

    def _let_go(self, entry: OpenModel, now: float) -> float | None:
        """Give back what `entry` was kept long enough; return the seconds until its turn (None: no turn)."""
        keep = entry.keep
        with self.lock:
            if entry.running or keep == -1:
                return None
            kv, _ = entry.conversations.committed()
            scratch = self._scratch(entry)
            weights = entry.model.weights.resident if keep is not None else 0
            if kv + scratch + weights == 0:
                return None
            wait = entry.last_used + (self.limits.idle if keep is None else keep) - now
            if wait > 0:
                return wait
            size = self._release_scratch(entry) + entry.conversations.give_up(kv, keep_grants=False)
            if weights:
                size += self._residency.evict(entry.model.weights, entry.model.weights.eviction_order())
            self._engine.flexmem.report_returned(size + self._engine.flexmem.return_unused())
            return None

    def _take_in(self, name: str, size: int) -> OpenModel:
        self._opening = name
        try:
            require_room(name, size)
            model = Model(self._engine, self._store, name)
            try:
                vocabulary = Vocabulary(model)
                template = ChatTemplate(model, vocabulary, self._renderer)
                record = self._record(model.manifest)
                abilities = record.abilities if record is not None else abilities_of(model)
                fingerprint, flexmem = self._engine.fingerprint, self._engine.flexmem
                parked = ParkedKv(
                    self._store, name, fingerprint, flexmem, quota=self.limits.parked, counters=self.counters
                )
                # Last: when this fails there is only the model to close.
                context = Context(model, self._residency, self.limits.context, self.limits.sequences)
            except BaseException:
                model.close()
                raise
        except FlexServeError as error:
            self.note(name, error)
            raise
        finally:
            self._opening = ""
        conversations = Conversations(context, parked, self.lock)
        entry = OpenModel(
            model, context, vocabulary, template, conversations, abilities, last_used=time.monotonic()
        )
        while len(self._open) >= _MAX_OPEN:
            idle = [n for n, other in self._open.items() if not other.running]
            if not idle:
                break
            oldest = min(idle, key=lambda n: self._open[n].last_used)
            self._put_away(oldest, time.monotonic() + _SEAL_AT_END)
        with self.lock:
            self._open[name] = entry
        return entry

    def _put_away(self, name: str, deadline: float = 0.0) -> None:
        """Close model `name`, having sealed its KV as far as `deadline` (monotonic seconds) allows."""
        conversations = self._open[name].conversations
        for slot in conversations.unsealed():
            if time.monotonic() < deadline:
                conversations.seal_idle(slot)
        with self.lock:
            entry = self._open.pop(name)
        self._engine.flexmem.report_returned(self._residency.retire(entry.model.weights))
        entry.context.close()
        entry.model.close()

    # ---- any thread -------------------------------------------------------------------------------

    def pin(self, names: Iterable[str]) -> None:
        """Keep the weights of these models, and of no others, as long as anything else can be given up."""
        with self.lock:
            self._pinned = frozenset(names)

    def is_pinned(self, name: str) -> bool:
        """Return whether model `name` is pinned."""
        return name in self._pinned

    def holdings(self) -> list[Holding]:
        """Return what open models hold. Call it under the lock to act on it."""
        found: list[Holding] = []
        with self.lock:
            for name, entry in self._open.items():
                idle, used = entry.conversations.committed()
                sizes = [
                    (Kind.SCRATCH, self._scratch(entry), entry.running),
                    (Kind.KV, idle, False),
                    (Kind.KV, used, True),
                    (Kind.WEIGHTS, entry.model.weights.resident, entry.running),
                ]
                found += [Holding(name, k, size, busy, entry.last_used) for k, size, busy in sizes if size]
        return found

    def entries(self) -> list[OpenModel]:
        """Return the models that are open."""
        with self.lock:
            return list(self._open.values())

    def give_up(self, name: str, kind: Kind, size: int, *, keep_grants: bool = False) -> int:
        """Give about `size` bytes of one kind up; return the bytes that went.

        They go to the OS or, with `keep_grants`, to the next commit of ours. Under the lock; for
        weights of a running model also with the gate shut.
        """
        entry = self._open[name]
        if kind is Kind.SCRATCH:
            return self._release_scratch(entry, keep_grants=keep_grants)
        if kind is Kind.KV:
            return entry.conversations.give_up(size, keep_grants=keep_grants)
        weights = entry.model.weights
        order = weights.eviction_order()
        # All is all: where buffers end in short granules, there are more of them than bytes would say.
        count = len(order) if size >= weights.resident else -(-size // self._engine.flexmem.granule)
        return self._residency.evict(weights, order[:count], keep_grants=keep_grants)

    @contextlib.contextmanager
    def recalling(self, patience: float) -> Iterator[None]:
        """Hold the lock for a recall, which the engine's sealing of idle KV must not keep from its memory.

        Waits for a sealing under way, which takes milliseconds, but at most `patience` seconds or a
        moment: it may itself be waiting for a grant, which comes after the recall.
        """
        quiet = self._sealing.acquire(timeout=max(0.0, min(patience, _MOMENT)))
        try:
            with self.lock:
                yield
        finally:
            if quiet:
                self._sealing.release()

    def seal_before(self, deadline: float) -> None:
        """Seal idle KV while `deadline` (monotonic seconds) leaves time for it. Under the lock.

        Nothing may be asked of the normal world during a recall, so the plaintext goes where idle
        scratch was.
        """
        for entry in self._open.values():
            if not entry.running and entry.conversations.unsealed():
                self._release_scratch(entry, keep_grants=True)
                entry.conversations.seal_before(deadline)

    # The engine's work area serves whichever model computes. It counts as scratch of the model that
    # runs or, when none does, ran last, so that no idle model's scratch takes it from a running one.

    def _has_work(self, entry: OpenModel) -> bool:
        latest = max(self._open.values(), key=lambda e: (e.running, e.last_used))
        return entry is latest

    def _scratch(self, entry: OpenModel) -> int:
        """Return the committed bytes of scratch and work area."""
        work = self._engine.work_committed if self._has_work(entry) else 0
        return entry.context.scratch_committed() + work

    def _release_scratch(self, entry: OpenModel, *, keep_grants: bool = False) -> int:
        work = self._engine.release_work(keep_grants=keep_grants) if self._has_work(entry) else 0
        return work + entry.context.release_scratch(keep_grants=keep_grants)

    def missing(self, name: str) -> int:
        """Return the bytes of weights that a request to model `name` finds missing; 0 if it is unknown."""
        with self.lock:
            entry = self._open.get(name)
            return entry.model.weights.size - entry.model.weights.resident if entry is not None else 0

    def statuses(self) -> list[ModelStatus]:
        """Return one status for each model of the store, open or not."""
        with self.lock:
            return [
                self._with_record(self._status(m.name, m.size, self._open.get(m.name)), m)
                for m in self._store.list()
            ]

    def _with_record(self, status: ModelStatus, manifest: Manifest) -> ModelStatus:
        record = self._record(manifest)
        if record is None:
            return status
        return msgspec.structs.replace(status, abilities=record.abilities, trial=record.trial)

    def _status(self, name: str, size: int, entry: OpenModel | None) -> ModelStatus:
        error = self._failed.get(name)
        failure = failure_of(error) if error is not None else None
        if entry is None:
            state = "loading" if name == self._opening else "unloaded"
            return ModelStatus(name, state, size, 0, 0, 0, False, failure)
        weights, scratch = entry.model.weights, self._scratch(entry)
        kv, resident = sum(entry.conversations.committed()), weights.resident
        state = "loaded" if weights.whole else "partial" if resident else "unloaded"
        running, heap = entry.running, entry.heap
        return ModelStatus(name, state, weights.size, resident, kv, scratch, running, failure, heap=heap)


def _heap_of(manifest: Manifest) -> int:
    return _HEAP_OF_HEADER * manifest.metadata_bytes


def require_room(name: str, size: int) -> None:
    """Raise CallerError when model `name`, of `size` bytes, is larger than the machine's memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise CallerError(
            f"{name} needs {format_size(size)}; this machine has {format_size(memory)} of memory.",
            hint="Use a smaller model or a stronger quantization.",
            code="model_too_large",
        )
