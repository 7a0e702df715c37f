"""KV that left memory: sealed on disk, authenticated, found again by its tokens.

A sealed sequence is a file like an image (trusted.store.image): encrypted under a key that only
this device can derive, every chunk bound to its place, its file and its model. Whose it is and
which tokens it stands for is in the encrypted index, so the normal world learns no more than
sizes and times, and a file put in another's place answers for its own tokens only. Old files are
as good as new ones: the KV of the same tokens is the same.

What is sealed is only ever a saving. A file that is gone, damaged or of another build is
forgotten, counted and computed anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from flexserve.errors import FlexServeError
from flexserve.protocol.statuses import KvStatus
from flexserve.trusted.kv.slots import common_prefix
from flexserve.trusted.memory.flexmem import FlexMem
from flexserve.trusted.store.image import BufferSpec, Image, ImageWriter
from flexserve.trusted.store.store import Store
from flexserve.units import MIB

WORTHWHILE = 32  # tokens; fewer are computed as fast as they are read
_CHUNK = MIB
_MAX_FILES = 256  # of one model


class _Label(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the encrypted index says of a sealed sequence."""

    owner: str
    tokens: Annotated[list[int], Meta(max_length=1 << 22)]
    form: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class SealedSequence:
    """One sealed sequence."""

    path: Path
    owner: str
    tokens: Sequence[int]
    form: str
    size: int  # bytes of the file


class SealedKv:
    """The sealed sequences of one model. Thread-safe; the newest are kept when `quota` is reached."""

    def __init__(
        self,
        store: Store,
        model: str,
        fingerprint: str,
        flexmem: FlexMem,
        *,
        form: str,
        quota: int,
        counters: KvStatus,
    ) -> None:
        """Read the labels of what is sealed for `model`. `quota`: bytes on disk, for this model.

        `form`: what else than the model the KV depends on, as its type. KV of another form is not found,
        and goes like the rest: when it is superseded, or when the disk is short.
        """
        self._store, self._model, self._fingerprint = store, model, fingerprint
        self._flexmem, self._quota, self.counters = flexmem, quota, counters
        self._form = form
        self._lock = threading.RLock()
        self._entries = self._scan()  # the oldest first

    def find(
        self, owner: str, tokens: Sequence[int], usable: Callable[[int, int], int]
    ) -> tuple[SealedSequence, int] | None:
        """Return the sealed sequence that has most of `tokens` to be used, and how many that is.

        `usable(count, shared)`: how many of the first tokens of a sealed sequence of `count` can be
        used again, of `shared` that are the same.
        """
        with self._lock:
            found = [
                (usable(len(p.tokens), common_prefix(p.tokens, tokens)), p)
                for p in self._entries
                if p.owner == owner and p.form == self._form
            ]
        length, best = max(found, key=lambda pair: pair[0], default=(0, None))
        return (best, length) if best is not None and length >= WORTHWHILE else None

    def save(
        self, owner: str, tokens: Sequence[int], size: int, export: Callable[[memoryview], int], *, ask: bool
    ) -> bool:
        """Seal the `size` bytes that `export` writes as the KV of `tokens`; return whether it was done.

        Supersedes what was sealed of the same conversation. `ask`: whether memory for the plaintext
        may be asked of the normal world; during a recall it may not. Never raises for want of
        memory or disk.
        """
        if size <= 0 or size > self._quota:
            return False
        with self.staging(size, ask=ask) as plain:
            if plain is None or export(plain) != size:
                return False
            try:
                path = self._write(_Label(owner, list(tokens), self._form), plain)
            except FlexServeError:
                return False  # the disk is full, or the model was removed
        with self._lock:
            superseded = [
                p
                for p in self._entries
                if p.owner == owner and common_prefix(p.tokens, tokens) == len(p.tokens)
            ]
            size = path.stat().st_size
            self._entries.append(SealedSequence(path, owner, tuple(tokens), self._form, size))
            for entry in superseded:
                self.forget(entry)
            self._keep_quota()
        self.counters.sealed += 1
        return True

    def load(self, entry: SealedSequence, take_in: Callable[[memoryview], bool]) -> bool:
        """Hand the authenticated KV of `entry` to `take_in`; return whether that worked.

        What does not authenticate or fit is forgotten and counted; where only memory is short
        nothing is.
        """
        began = time.monotonic()
        try:
            with self._store.open(self._model) as sealed, Image.open(entry.path, sealed, self._key) as image:
                size = image.buffers[0].size
                with self.staging(size, ask=True) as plain:
                    if plain is None:
                        return False
                    for index in range(-(-size // _CHUNK)):
                        image.restore(0, index, plain[index * _CHUNK : (index + 1) * _CHUNK])
                    taken = take_in(plain)
        except (FlexServeError, OSError, ValueError):
            taken = False
        if taken:
            self.counters.resumed += 1
            self.counters.resumed_tokens += len(entry.tokens)
            self.counters.resumed_ms += 1000 * (time.monotonic() - began)
        else:
            self.counters.damaged += 1
            self.forget(entry)
        return taken

    def forget(self, entry: SealedSequence) -> None:
        """Remove a sealed sequence. Always safe."""
        with self._lock:
            if entry in self._entries:
                self._entries.remove(entry)
        with contextlib.suppress(OSError):
            entry.path.unlink()

    @contextlib.contextmanager
    def staging(self, size: int, *, ask: bool) -> Iterator[memoryview | None]:
        """Have `size` bytes of secure memory inside the block; None when there is none to be had."""
        flexmem = self._flexmem
        arena = flexmem.reserve(size)
        try:
            if ask:
                flexmem.grant(arena.size)
            there = flexmem.try_commit(arena, 0, arena.size)
            yield flexmem.view(arena, 0, size).cast("B") if there else None
        finally:
            flexmem.report_returned(flexmem.free(arena))

    # ---- inside --------------------------------------------------------------------------------

    @property
    def _key(self) -> str:
        return f"kv of {self._fingerprint}"

    def _write(self, label: _Label, plain: memoryview) -> Path:
        specs, extra = [BufferSpec("kv", len(plain))], msgspec.msgpack.encode(label)
        with self._store.open(self._model) as sealed:
            path = self._store.derived.kv_path(sealed.manifest, secrets.token_hex(16))
            with ImageWriter(path, sealed, self._key, specs, _CHUNK, extra=extra) as writer:
                for index in range(-(-len(plain) // _CHUNK)):
                    writer.write(0, index, plain[index * _CHUNK : (index + 1) * _CHUNK])
                writer.finish(durable=False)  # what is torn does not authenticate, and is computed anew
        return path

    def _scan(self) -> list[SealedSequence]:
        """Read the labels of all files; remove those that are of no use any more."""
        found: list[tuple[float, SealedSequence]] = []
        with self._store.open(self._model) as sealed:
            for path in self._store.derived.usable_kv_paths(sealed.manifest):
                try:
                    with Image.open(path, sealed, self._key) as image:
                        label = msgspec.msgpack.decode(image.extra, type=_Label)
                    info = path.stat()
                except (FlexServeError, OSError, msgspec.MsgspecError):
                    self.counters.damaged += 1
                    with contextlib.suppress(OSError):
                        path.unlink()
                else:
                    entry = SealedSequence(path, label.owner, tuple(label.tokens), label.form, info.st_size)
                    found.append((info.st_mtime, entry))
        return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]

    def _keep_quota(self) -> None:
        while len(self._entries) > 1 and (
            sum(e.size for e in self._entries) > self._quota or len(self._entries) > _MAX_FILES
        ):
            self.forget(self._entries[0])
