"""Bringing weights in ahead of need, with what the foreground leaves of disk, cores and memory.

A model that is expected next can be restored while the present one still decodes. That is a bet:
it must cost the request that runs nothing but the chunk that is claimed. So these are threads of their
own, that look before each chunk whether a foreground job has work, ask the normal world for
memory with none claimed, and never ask another model to make room. Whatever goes wrong ends
the prefetch without a word: who needs the chunk will meet the same trouble, and report it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from flexserve.errors import FlexServeError
from flexserve.platforms.ports import Arena
from flexserve.trusted.memory.flexmem import FlexMem
from flexserve.trusted.memory.ownership import PageState
from flexserve.trusted.weights.chunks import Weights
from flexserve.trusted.weights.fill import Filler
from flexserve.trusted.weights.states import ABSENT, ChunkEvent

_NICE = 15  # below the loaders: what runs goes before what may run
_ASKED = 16  # chunks asked of the normal world at a time: what is in vain if the prefetch ends


class Settle(Protocol):
    """How the residency learns what became of a chunk; called under its lock."""

    def __call__(self, weights: Weights, chunk: int, *, resident: bool) -> None:
        """Note whether `chunk`, which was claimed, is in memory now."""


class _Ahead:
    """One prefetch under way. Fields change only under the residency's lock."""

    def __init__(self, weights: Weights, order: Sequence[int]) -> None:
        self.weights, self.order = weights, tuple(order)
        self.next = 0  # index in `order` of the next chunk to load
        self.loading = 0  # chunks claimed
        self.ended = False  # nothing more is to be loaded
        self.revoked = False  # what is still claimed is to be given back

    def take(self) -> int | None:
        """Claim the next absent chunk; return its place in the order (None: there is none)."""
        states = self.weights.states
        while self.next < len(self.order):
            position, self.next = self.next, self.next + 1
            if states[self.order[position]] == ABSENT:
                self.weights.table.move(ChunkEvent.CLAIM, self.order[position])
                self.loading += 1
                return position
        return None


class Prefetcher:
    """The background threads of a residency, whose lock (`changed`) it shares.

    `idle` tells, under the lock, whether the foreground has nothing to load.
    """

    def __init__(
        self,
        flexmem: FlexMem,
        filler: Filler,
        changed: threading.Condition,
        threads: int,
        *,
        idle: Callable[[], bool],
        settle: Settle,
    ) -> None:
        self._flexmem, self._filler, self._changed = flexmem, filler, changed
        self._idle, self._settle = idle, settle
        self._ahead: _Ahead | None = None
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, name=f"prefetch-{i}", daemon=True) for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def active(self) -> bool:
        """Whether chunks are still to be loaded, or claimed."""
        with self._changed:
            return self._ahead is not None

    def start(self, weights: Weights, chunks: Sequence[int]) -> None:
        """Load `chunks` in this order from now on, and nothing that an older call named."""
        with self._changed:
            self._ahead = _Ahead(weights, chunks)
            self._finish_if_done(self._ahead)
            self._changed.notify_all()

    def revoke(self, weights: Weights | None) -> None:
        """End a prefetch of `weights` (None: of any); what is claimed is given back, too."""
        with self._changed:
            ahead = self._ahead
            if ahead is not None and weights in (None, ahead.weights):
                ahead.ended = ahead.revoked = True
                self._finish_if_done(ahead)

    def close(self) -> None:
        """Stop the threads; chunks stay as they are."""
        with self._changed:
            self._closing, self._ahead = True, None
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    # ---- the threads -----------------------------------------------------------------------------

    def _work(self) -> None:
        with contextlib.suppress(OSError):  # a container may forbid it; it is only a preference
            os.setpriority(os.PRIO_PROCESS, 0, _NICE)  # of this thread
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._turn() is not None)
                if self._closing:
                    return
                ahead = self._turn()
                assert ahead is not None
            if not self._have_memory(ahead):
                self._end(ahead)
                continue
            with self._changed:
                position = ahead.take() if self._turn() is ahead else None
                self._finish_if_done(ahead)
            if position is not None:
                self._load(ahead, position)

    def _turn(self) -> _Ahead | None:
        """Return the prefetch that may go on now. Under the lock."""
        ahead = self._ahead
        if ahead is None or ahead.ended or ahead.next >= len(ahead.order) or not self._idle():
            return None
        return ahead

    def _have_memory(self, ahead: _Ahead) -> bool:
        """See to it that a chunk is granted; return whether one is."""
        chunk = self._flexmem.chunk
        if self._flexmem.bytes_in(PageState.GRANTED) >= chunk:
            return True
        count = min(_ASKED, max(1, len(ahead.order) - ahead.next))
        try:
            return self._flexmem.grant(count * chunk) >= chunk
        except FlexServeError:
            return False

    def _load(self, ahead: _Ahead, position: int) -> None:
        weights, chunk, broken = ahead.weights, ahead.order[position], False
        filled = False
        try:
            if position % _ASKED == 0:
                self._read_ahead(ahead, position)
            filled = self._filler.fill(weights, chunk, self._commit) is not None
        except Exception:
            broken = True
        with self._changed:
            if broken:
                ahead.ended = True
            elif not filled:
                ahead.next = min(ahead.next, position)  # the foreground took what was granted
            if not (filled and ahead.revoked):
                self._let_go(ahead, chunk, resident=filled)
                return
        part, index, _ = weights.locate(chunk)
        arena = weights.parts[part].arena
        size = self._flexmem.release(arena, index * self._flexmem.chunk, self._flexmem.chunk)
        self._flexmem.report_returned(size)
        with self._changed:
            self._let_go(ahead, chunk, resident=False)

    def _commit(self, arena: Arena, offset: int) -> bool:
        return self._flexmem.try_commit(arena, offset, self._flexmem.chunk)

    def _read_ahead(self, ahead: _Ahead, position: int) -> None:
        for chunk in ahead.order[position : position + _ASKED]:
            part, index, _ = ahead.weights.locate(chunk)
            ahead.weights.source.prefetch(part, index, 1)

    def _let_go(self, ahead: _Ahead, chunk: int, *, resident: bool) -> None:
        ahead.loading -= 1
        self._settle(ahead.weights, chunk, resident=resident)
        self._finish_if_done(ahead)
        if ahead.ended:
            self._changed.notify_all()  # somebody may wait for us to let go of these weights

    def _end(self, ahead: _Ahead) -> None:
        with self._changed:
            ahead.ended = True
            self._finish_if_done(ahead)

    def _finish_if_done(self, ahead: _Ahead) -> None:
        over = ahead.ended or ahead.next >= len(ahead.order)
        if over and ahead.loading == 0 and self._ahead is ahead:
            self._ahead = None
