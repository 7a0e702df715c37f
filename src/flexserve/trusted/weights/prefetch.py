"""What is to be brought in ahead of need, with what the foreground leaves of disk, cores and memory.

A model that is expected next can be restored while the present one still decodes. That is a bet:
it must cost the request that runs nothing but the chunk that is claimed. So threads of their own look
before each chunk whether a foreground job has work, ask the normal world for memory with no chunk claimed,
and never ask another model to make room. Whatever goes wrong ends the prefetch without a word: who needs
the chunk will meet the same trouble, and report it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Protocol

from flexserve.errors import FlexServeError
from flexserve.trusted.memory.flexmem import FlexMem
from flexserve.trusted.weights.chunks import Weights
from flexserve.trusted.weights.cpu_arbiter import PREFETCH_NICE, lower_priority
from flexserve.trusted.weights.fill import Filler
from flexserve.trusted.weights.states import ABSENT, ChunkEvent

_ASKED = 16  # chunks asked of the normal world at a time: what is in vain if the prefetch ends


class Prefetch:
    """One prefetch under way. Fields change only under the loader's lock."""

    def __init__(self, weights: Weights, order: Sequence[int]) -> None:
        self.weights, self.order = weights, tuple(order)
        self.next = 0  # index in `order` of the next chunk to load
        self.loading = 0  # chunks claimed
        self.ended = False  # nothing more is to be loaded
        self.revoked = False  # what is still claimed is to be given back

    @property
    def left(self) -> int:
        """How many chunks are still to be claimed."""
        return 0 if self.ended else len(self.order) - self.next

    @property
    def over(self) -> bool:
        """Whether nothing is to be claimed any more, and nothing is."""
        return self.left == 0 and self.loading == 0

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

    def revoke(self) -> None:
        """End it; what is claimed is to be given back, too."""
        self.ended = self.revoked = True


class Foreground(Protocol):
    """What a prefetch yields to, and where it records what became of a chunk (trusted.weights.loader)."""

    @property
    def idle(self) -> bool:
        """Whether it has nothing to load. Under the lock."""

    def settle(self, weights: Weights, chunks: Iterable[int], *, resident: bool) -> None:
        """Record what became of a chunk that was claimed. Under the lock."""

    def put_back(self, weights: Weights, chunk: int) -> None:
        """Give the memory of a chunk that was filled to the OS."""


class Prefetcher:
    """The prefetch under way and the threads that follow it, under the loader's lock (`changed`)."""

    def __init__(
        self, foreground: Foreground, changed: threading.Condition, flexmem: FlexMem, filler: Filler
    ) -> None:
        self._foreground, self._changed = foreground, changed
        self._flexmem, self._filler = flexmem, filler
        self._current: Prefetch | None = None
        self._closing = False

    @property
    def active(self) -> bool:
        """Whether chunks are still to be prefetched, or claimed for it. Under the lock."""
        return self._current is not None

    def replace(self, prefetch: Prefetch) -> None:
        """Follow `prefetch` instead of the one before. Under the lock."""
        if self._current is not None:
            self._current.ended = True  # `retire` may wait for what is still claimed for it
        self._current = prefetch
        self._drop_if_over(prefetch)

    def revoke(self, weights: Weights | None) -> None:
        """End a prefetch of `weights` (None: of any). Under the lock."""
        prefetch = self._current
        if prefetch is not None and weights in (None, prefetch.weights):
            prefetch.revoke()
            self._drop_if_over(prefetch)

    def close(self) -> None:
        """Have the threads end. Under the lock."""
        self._closing, self._current = True, None

    def serve(self) -> None:
        """Follow prefetches until `close`. One thread or several."""
        lower_priority(PREFETCH_NICE)
        while (prefetch := self._await_turn()) is not None:
            granted = self._grant(prefetch)
            with self._changed:
                prefetch.ended = prefetch.ended or not granted
                position = prefetch.take() if self._turn() is prefetch else None
                self._drop_if_over(prefetch)
            if position is not None:
                self._load(prefetch, position)

    def _drop_if_over(self, prefetch: Prefetch) -> None:
        if prefetch.over and self._current is prefetch:
            self._current = None

    def _await_turn(self) -> Prefetch | None:
        """Wait for a prefetch that may go on; None: the loader closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._turn() is not None)
            return None if self._closing else self._turn()

    def _turn(self) -> Prefetch | None:
        """Return the prefetch that may go on now: the foreground has nothing to load. Under the lock."""
        prefetch = self._current
        return prefetch if prefetch is not None and prefetch.left and self._foreground.idle else None

    def _grant(self, prefetch: Prefetch) -> bool:
        """See to it that a chunk is granted; return whether one is."""
        chunk = self._flexmem.chunk
        if self._flexmem.unused() >= chunk:
            return True
        count = min(_ASKED, max(1, prefetch.left))
        try:
            return self._flexmem.grant(count * chunk) >= chunk
        except FlexServeError:
            return False

    def _load(self, prefetch: Prefetch, position: int) -> None:
        weights, chunk = prefetch.weights, prefetch.order[position]
        filled = broken = False
        try:
            if position % _ASKED == 0:
                self._filler.read_ahead(weights, prefetch.order[position : position + _ASKED])
            filled = self._filler.fill(weights, chunk, self._filler.commit) is not None
        except Exception:
            broken = True
        with self._changed:
            if broken:
                prefetch.ended = True
            elif not filled:
                prefetch.next = min(prefetch.next, position)  # the foreground took what was granted
            unwanted = filled and prefetch.revoked
            if not unwanted:
                self._settle(prefetch, chunk, resident=filled)
        if unwanted:
            self._foreground.put_back(weights, chunk)
            with self._changed:
                self._settle(prefetch, chunk, resident=False)

    def _settle(self, prefetch: Prefetch, chunk: int, *, resident: bool) -> None:
        prefetch.loading -= 1
        self._foreground.settle(prefetch.weights, [chunk], resident=resident)
        self._drop_if_over(prefetch)
        if prefetch.ended:
            self._changed.notify_all()  # somebody may wait for us to let go of these weights
