"""Operating systems in Python that manage a fake machine's memory: one that keeps its word, and others.

`Driver` keeps it. The hostile ones derive from it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.abi import Event, Notice, PageState, Status
from flexserve.platforms.trustzone.ram import BASE, PAGE
from flexserve.testing.fake_monitor import FakeMonitor, Poll

_LEAVINGS = b"left behind by the OS "


class Driver:
    """An OS with a free list. It grants what it has, in runs of at most `longest` pages."""

    def __init__(self, *, longest: int = abi.CALL_PAGES_MAX, most: int | None = None) -> None:
        self.longest = longest
        self.most = most  # pages that it hands over at most; None: all that are free
        self.leaks = 0  # pages that came back with anything in them
        self._free: list[int] = []  # addresses of pages
        self._handed = 0

    def start(self, monitor: FakeMonitor) -> None:
        self.monitor = monitor
        self._free = list(range(BASE, BASE + monitor.hidden, PAGE))

    @property
    def free(self) -> int:
        """Pages that the OS has."""
        return len(self._free)

    def serve(self, notice: Poll) -> None:
        kind, a, b, c = notice
        match kind:
            case Notice.WANT:
                self.want(serial=a, pages=b, minimum=c)
            case Notice.OFFER:
                self.offered(a, b)
            case Notice.UNWANTED:
                self.unwanted(a, b)
            case Notice.GONE:
                self.gone()

    def want(self, serial: int, pages: int, minimum: int) -> None:
        available = len(self._free)
        if self.most is not None:
            available = min(available, self.most - self._handed)
        pages = min(pages, available)
        if pages >= max(minimum, 1):
            self.grant(pages)
        self.monitor.answer(serial, pages if pages >= minimum else 0)

    def grant(self, pages: int) -> list[tuple[int, int]]:
        """Dirty and hand over `pages` pages; return the runs."""
        runs = self.runs(self.allocate(pages))
        for ipa, count in runs:
            window = self.monitor.ram.window(ipa - BASE, count * PAGE)
            window[: len(_LEAVINGS)] = _LEAVINGS
            window[-len(_LEAVINGS) :] = _LEAVINGS
            if self.monitor.grant(ipa, count) is not Status.OK:  # the secure world left meanwhile
                self.freed(ipa, count)
                self._handed += count
        self._handed += pages
        return runs

    def allocate(self, pages: int) -> list[int]:
        self._free.sort()
        chosen, self._free = self._free[:pages], self._free[pages:]
        return chosen

    def runs(self, pages: Iterable[int]) -> list[tuple[int, int]]:
        """Return (address, count) of each run of neighbours, none longer than `longest`."""
        runs: list[tuple[int, int]] = []
        for page in pages:
            if runs and runs[-1][0] + runs[-1][1] * PAGE == page and runs[-1][1] < self.longest:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((page, 1))
        return runs

    def offered(self, ipa: int, pages: int) -> None:
        if self.monitor.take(ipa, pages) is Status.OK:
            window = self.monitor.ram.window(ipa - BASE, pages * PAGE)
            self.leaks += sum(any(window[start : start + PAGE]) for start in range(0, len(window), PAGE))
            self.freed(ipa, pages)

    def unwanted(self, ipa: int, pages: int) -> None:
        states = bytes(self.monitor.states[(ipa - BASE) // PAGE :][:pages])
        if self.monitor.give_back(ipa, pages) is Status.OK:
            for index, state in enumerate(states):
                if state == PageState.GRANTED:
                    self.freed(ipa + index * PAGE, 1)

    def freed(self, ipa: int, pages: int) -> None:
        self._free += range(ipa, ipa + pages * PAGE, PAGE)
        self._handed -= pages

    def gone(self) -> None:
        states = bytes(self.monitor.states)
        for state, call in ((PageState.RECALLING, self.offered), (PageState.GRANTED, self.unwanted)):
            held = (BASE + index * PAGE for index, value in enumerate(states) if value == state)
            for ipa, pages in self.runs(held):
                call(ipa, pages)


class Scattering(Driver):
    """Its memory is in pieces: no two pages that it hands over are neighbours."""

    def __init__(self, *, most: int | None = None) -> None:
        super().__init__(longest=1, most=most)
        self._random = random.Random(4)  # noqa: S311

    def allocate(self, pages: int) -> list[int]:
        self._random.shuffle(self._free)
        chosen, self._free = self._free[:pages], self._free[pages:]
        return chosen


class Boasting(Driver):
    """Answers for twice the pages that it granted."""

    def want(self, serial: int, pages: int, minimum: int) -> None:  # noqa: ARG002
        self.grant(pages // 2)
        self.monitor.answer(serial, pages)


class Regretting(Driver):
    """Takes what it granted away again before it can be committed, `times` times."""

    def __init__(self, *, times: int) -> None:
        super().__init__()
        self.times = times

    def want(self, serial: int, pages: int, minimum: int) -> None:  # noqa: ARG002
        runs = self.grant(pages)
        self.monitor.answer(serial, pages)
        self.times -= 1
        if self.times >= 0:
            for ipa, count in runs:
                self.unwanted(ipa, count)


class Fickle(Driver):
    """Takes back, at random, some of what it just granted, before and after it answers."""

    def __init__(self) -> None:
        super().__init__(longest=3)
        self._random = random.Random(4)  # noqa: S311

    def want(self, serial: int, pages: int, minimum: int) -> None:  # noqa: ARG002
        runs = self.grant(pages)
        early, late = (
            [run for run in runs if self._random.random() < share]
            for share in self._random.choices((0, 0.3), k=2)
        )
        for ipa, count in early:
            self.unwanted(ipa, count)
        self.monitor.answer(serial, pages)
        for ipa, count in late:
            self.unwanted(ipa, count)


class Silent(Driver):
    """Hears everything and does nothing."""

    def serve(self, notice: Poll) -> None:
        del notice


class Stubborn(Driver):
    """Does not take what it is offered back."""

    def offered(self, ipa: int, pages: int) -> None:
        del ipa, pages


class Babbling(Driver):
    """Answers everything three times, late answers and ones to nobody included, and presses absurdly."""

    def want(self, serial: int, pages: int, minimum: int) -> None:
        self.monitor.answer(serial + 1000, 1 << 60)
        super().want(serial, pages, minimum)
        self.monitor.answer(serial, (1 << 64) - 1)
        self.monitor.answer(serial, 0)
        self.monitor.pressure((1 << 64) - 1, (1 << 64) - 1)
        self.monitor.pressure(0, 0)


class Forged(Driver):
    """In league with a broken monitor: it reports grants of pages that are not granted.

    Nobody is promised safety from the monitor; but what can be checked is checked.
    """

    def want(self, serial: int, pages: int, minimum: int) -> None:  # noqa: ARG002
        tell, ram = self.monitor.tell, self.monitor.ram
        for ipa, count in (
            (BASE, pages),  # the OS's still
            (BASE + self.monitor.hidden, 4),  # the monitor's own
            (BASE + ram.size, pages),
            (BASE - PAGE, 1),
            (BASE + 1, 1),
            (BASE + ram.size - PAGE, 1 << 52),
            (0, 0),
        ):
            tell(Event.GRANTED, ipa, count)
        self.monitor.answer(serial, pages)
