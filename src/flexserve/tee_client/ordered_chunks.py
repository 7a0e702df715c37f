"""The chunks of a model's weights in the order in which graphs read them: what is there, comes and goes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence


class OrderedChunks:
    """Which chunks are in memory, or on their way. Whoever calls holds a lock.

    They come in from the front of the order. They are given up from its end: all behind some place at once.
    So those that are there, or on their way and wanted, are the first ones of the order. It is otherwise only
    after a load failed, or the order became known, or the application said something else, while others were
    there. Then what is missing before them comes first.
    """

    def __init__(self, count: int) -> None:
        """There are `count` chunks, none in memory; their order is that of their numbers."""
        self.known = False  # in which order graphs read them
        self._order: Sequence[int] = range(count)
        self._there = bytearray(count)
        self._coming: dict[int, bool] = {}  # chunks on their way; whether they are wanted still

    def learn(self, read: Iterable[int]) -> None:
        """Take in the order in which graphs read chunks; others follow. Raises ValueError if one is none."""
        order = list(dict.fromkeys(read))
        if not set(order) <= set(range(len(self._there))):
            raise ValueError("these are no chunks of the model")
        self._order = [*order, *sorted(set(range(len(self._there))) - set(order))]
        self.known = True

    # ---- what is there -----------------------------------------------------------------------------

    @property
    def resident(self) -> int:
        """How many are in memory."""
        return sum(self._there)

    def states(self) -> Iterator[tuple[bool, int]]:
        """Yield whether they are there, by their numbers, each time with how many on end are alike."""
        return ((there == 1, len(list(run))) for there, run in itertools.groupby(bytes(self._there)))

    def found(self, there: Sequence[bool]) -> None:
        """Record which are there, by their numbers."""
        self._there[:] = bytes(there)

    # ---- coming in ---------------------------------------------------------------------------------

    def claim(self, count: int | None = None) -> int | None:
        """Return the first one that is missing and not on its way; it is on its way now. None: there is none.

        Nor is there while one before it still comes whose place was given up: that one will be the next.
        `count`: look at no more than so many of the order.
        """
        for chunk in itertools.islice(self._order, count):
            if self._there[chunk] or self._coming.get(chunk):
                continue
            if chunk in self._coming:
                return None
            self._coming[chunk] = True
            return chunk
        return None

    def came(self, chunk: int) -> bool:
        """Record that it came. False: its place was given up meanwhile, and it has to go, too."""
        wanted = self._coming.pop(chunk)
        self._there[chunk] = wanted
        return wanted

    def failed(self, chunk: int) -> None:
        """Record that it does not come. Always safe."""
        self._coming.pop(chunk, None)

    # ---- going -------------------------------------------------------------------------------------

    def give_up(self, count: int) -> list[range]:
        """Give up `count` of those that are there, all if there are fewer, and their places in the order.

        Return what is behind the first of these places, in runs of numbers. Of what is on its way there,
        nothing is wanted any more.
        """
        place = len(self._order)
        while count > 0 and place > 0:
            place -= 1
            count -= self._there[self._order[place]]
        behind = self._order[place:]
        for chunk in behind:
            self._there[chunk] = 0
            if chunk in self._coming:
                self._coming[chunk] = False
        return runs(behind)


def runs(numbers: Iterable[int]) -> list[range]:
    """Return numbers as the longest ranges that they make."""
    found: list[range] = []
    for number in sorted(numbers):
        if found and found[-1].stop == number:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found
