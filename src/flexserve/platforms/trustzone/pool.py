"""Runs of the machine's pages, and a pool that gives the longest ones first."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from flexserve.platforms.trustzone.ram import PAGE


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """`pages` pages in a row, the first at physical address `ipa`."""

    ipa: int
    pages: int

    @property
    def end(self) -> int:
        """The address behind the last page."""
        return self.ipa + self.pages * PAGE

    @property
    def size(self) -> int:
        """Bytes."""
        return self.pages * PAGE

    def split(self, pages: int) -> tuple[Run, Run]:
        """Return the first `pages` pages, and the rest; both must have some."""
        return Run(self.ipa, pages), Run(self.ipa + pages * PAGE, self.pages - pages)


def count(runs: Iterable[Run]) -> int:
    """Return the pages of `runs`."""
    return sum(run.pages for run in runs)


def merged(runs: Iterable[Run]) -> Iterator[Run]:
    """Yield `runs` in their order, those joined that follow each other without a gap."""
    last: Run | None = None
    for run in runs:
        if last is not None and last.end == run.ipa:
            last = Run(last.ipa, last.pages + run.pages)
            continue
        if last is not None:
            yield last
        last = run
    if last is not None:
        yield last


def cut(runs: Iterable[Run], pages: int) -> Iterator[list[Run]]:
    """Yield `runs`, in order, in portions of exactly `pages` pages (the last one of what is left)."""
    portion: list[Run] = []
    room = pages
    for run in runs:
        while run.pages > room:
            head, run = run.split(room)  # noqa: PLW2901  # the rest is portioned further
            yield [*portion, head]
            portion, room = [], pages
        portion.append(run)
        room -= run.pages
        if not room:
            yield portion
            portion, room = [], pages
    if portion:
        yield portion


def pieces(runs: Iterable[Run], most: int) -> Iterator[Run]:
    """Yield `runs`, cut into pieces of at most `most` pages."""
    for run in runs:
        while run.pages > most:
            piece, run = run.split(most)  # noqa: PLW2901  # the rest is cut further
            yield piece
        yield run


def spans(ipa: int, wanted: NDArray[np.bool_], passable: NDArray[np.bool_], most: int) -> Iterator[Run]:
    """Yield few ranges with all `wanted` pages in them, and such as are `passable` between those.

    The masks have an entry for each page from address `ipa` on. A range begins and ends with a wanted page
    and does not reach over a multiple of `most` pages: an allocator that aligns its blocks has none there.
    """
    chosen, walls = np.flatnonzero(wanted), np.cumsum(~(wanted | passable))
    pages = chosen + ipa // PAGE
    # Pages lie in one range when as many multiples and as many walls are before them.
    apart = (np.diff(pages // most) != 0) | (np.diff(walls[chosen]) != 0)
    firsts, lasts = pages[np.r_[True, apart][: pages.size]], pages[np.r_[apart, True][: pages.size]]
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        yield Run(first * PAGE, last - first + 1)


class Pool:
    """Pages that nobody uses yet. The runs must not overlap. Not thread-safe."""

    def __init__(self) -> None:
        self._runs: list[Run] = []  # by length, the longest last
        self.pages = 0

    def add(self, run: Run) -> None:
        """Put a run in."""
        bisect.insort(self._runs, run, key=_length)
        self.pages += run.pages

    def take(self, pages: int) -> list[Run]:
        """Take `pages` pages out, in as few runs as there are of them; nothing if there are not enough.

        Of the runs that suffice alone the shortest is cut, so that long ones stay long.
        """
        if pages > self.pages:
            return []
        taken: list[Run] = []
        self.pages -= pages
        while pages:
            index = bisect.bisect_left(self._runs, pages, key=_length)
            run = self._runs.pop(min(index, len(self._runs) - 1))
            if run.pages > pages:
                run, rest = run.split(pages)
                bisect.insort(self._runs, rest, key=_length)
            taken.append(run)
            pages -= run.pages
        return taken

    def drop(self, gone: Run) -> list[Run]:
        """Forget those pages of `gone` that are in the pool, and return them."""
        hit = [run for run in self._runs if run.ipa < gone.end and gone.ipa < run.end]
        dropped: list[Run] = []
        for run in hit:
            self._runs.remove(run)
            self.pages -= run.pages
            if run.ipa < gone.ipa:
                head, run = run.split((gone.ipa - run.ipa) // PAGE)  # noqa: PLW2901  # what is left of it
                self.add(head)
            if gone.end < run.end:
                run, rest = run.split((gone.end - run.ipa) // PAGE)  # noqa: PLW2901
                self.add(rest)
            dropped.append(run)
        return dropped


def _length(run: Run) -> int:
    return run.pages
