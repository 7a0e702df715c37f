"""Who owns each chunk: the ownership table, law 1 and law 2 of docs/design.md.

A chunk is the unit of grant and recall. Exactly one party can use it at any time:

    NORMAL     the normal-world OS allocates, reads and writes it as any other memory
    GRANTED    taken from the OS for the secure world; nobody uses it, and it holds no secret yet
    SECURE     only the secure world can reach it
    RECALLING  on its way back: no longer used, not yet scrubbed, invisible to both worlds

The four states form a ring, with one short cut: a granted chunk that was never used goes
back without a scrub. There is no way from SECURE to NORMAL that does not pass RECALLING, so
no byte of a secure chunk is visible before it was overwritten (law 3). An absent key *is*
the illegal transition.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from flexserve.errors import IllegalTransitionError


class PageState(enum.IntEnum):
    """The owner of a chunk."""

    NORMAL = 0
    GRANTED = 1
    SECURE = 2
    RECALLING = 3


class PageEvent(enum.Enum):
    """What can happen to a chunk."""

    GRANT = "grant"  # the OS hands it over
    COMMIT = "commit"  # the secure world starts to use it
    RETURN = "return"  # never used: handed back as it came
    RECALL = "recall"  # the secure world stops using it
    SCRUBBED = "scrubbed"  # overwritten, visible to the OS again


TRANSITIONS: dict[tuple[PageState, PageEvent], PageState] = {
    (PageState.NORMAL, PageEvent.GRANT): PageState.GRANTED,
    (PageState.GRANTED, PageEvent.COMMIT): PageState.SECURE,
    (PageState.GRANTED, PageEvent.RETURN): PageState.NORMAL,
    (PageState.SECURE, PageEvent.RECALL): PageState.RECALLING,
    (PageState.RECALLING, PageEvent.SCRUBBED): PageState.NORMAL,
}

# By event, for speed: each of them has one row.
_ROWS = {event: (old, new) for (old, event), new in TRANSITIONS.items()}


class OwnershipTable:
    """The state of `total` chunks, numbered from 0.

    Not thread-safe: its one owner (trusted.memory.flexmem) serialises access.
    """

    def __init__(self, total: int) -> None:
        if total <= 0:
            raise ValueError("an ownership table needs at least one chunk")
        self.total = total
        self._states = bytearray(total)  # PageState.NORMAL == 0
        self._array = np.frombuffer(self._states, np.uint8)  # the same, for many at once
        self._counts = [total, 0, 0, 0]

    def state(self, page: int) -> PageState:
        """Return the state of chunk `page`. Raises IndexError for one that does not exist."""
        if page < 0:
            raise IndexError(page)
        return PageState(self._states[page])

    def are(self, state: PageState, pages: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return of each of `pages` whether it is in `state`. A negative number is no page, and in none."""
        # To compare with a number: with a member of an enum, numpy takes ten times as long.
        found: NDArray[np.bool_] = (pages >= 0) & (self._array[pages] == int(state))
        return found

    def count(self, state: PageState) -> int:
        """Return how many chunks are in `state`."""
        return self._counts[state]

    def apply(self, event: PageEvent, pages: Iterable[int]) -> None:
        """Move every one of `pages` along `event`, or raise and change nothing.

        Raises IllegalTransitionError when a page is unknown, named twice, or in a state that
        has no row for `event`.
        """
        batch = list(pages)
        if len(set(batch)) != len(batch):
            raise IllegalTransitionError(f"{event.value}: a chunk is named twice in one call.")
        old, new = map(int, _ROWS[event])
        states, total = self._states, self.total
        for page in batch:
            if not 0 <= page < total:
                raise IllegalTransitionError(f"{event.value}: chunk {page} does not exist.")
            if states[page] != old:
                raise IllegalTransitionError(f"{event.value}: chunk {page} is {self.state(page).name}.")
        for page in batch:
            states[page] = new
        self._counts[old] -= len(batch)
        self._counts[new] += len(batch)

    def check(self) -> None:
        """Assert the conservation law: every chunk has exactly one owner, none is lost."""
        counted = [self._states.count(state) for state in PageState]
        assert counted == self._counts, f"counts drifted: {counted} in the table, {self._counts} kept"
        assert sum(counted) == self.total, f"{self.total - sum(counted)} chunks lost"
