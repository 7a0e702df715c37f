"""What is to be brought in ahead of need, with what the foreground leaves of disk, cores and memory.

A model that is expected next can be restored while the present one still decodes. That is a bet:
it must cost the request that runs nothing but the chunk that is claimed. So threads of their own look
before each chunk whether a foreground job has work, ask the normal world for memory with no chunk claimed,
and never ask another model to make room. Whatever goes wrong ends the prefetch without a word: who needs
the chunk will meet the same trouble, and report it.
"""

from __future__ import annotations

from collections.abc import Sequence

from flexserve.trusted.weights.chunks import Weights
from flexserve.trusted.weights.states import ABSENT, ChunkEvent


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
