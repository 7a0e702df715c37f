"""What each call of the monitor costs the guest, in its own time."""

from __future__ import annotations

import statistics
from typing import Any

from flexserve.bench.trustzone.measured_machine import MeasuredMachine, Say
from flexserve.bench.trustzone.plan import Allocator, Plan
from flexserve.platforms.trustzone.abi import CALL_PAGES_MAX
from flexserve.platforms.trustzone.guest_pages import GuestPages

_CALLS = 200  # timed together: twice as many events, which fit the ring
_TIMES = 5  # that protection is switched together
_PAGES = (1, CALL_PAGES_MAX)
_LOOKS = 100  # at the counters, until they have moved


class Calls:
    """Measures, and keeps nanoseconds by what was measured."""

    def __init__(self, plan: Plan, say: Say) -> None:
        self._plan, self._say = plan, say
        self._samples: dict[str, list[float]] = {}

    def round(self, number: int) -> None:
        """Measure every call some times, in turns."""
        self._say(f"round {number + 1}: calls of the monitor")
        with (
            MeasuredMachine.set(self._plan, Allocator.FLEXMEM, self._say) as measured,
            measured.secure_core() as pages,
        ):
            pages.start()
            anchor = pages.take(1)  # while anything is held, the secure world stays attached
            for _ in range(self._plan.repeats):
                self._measure(measured, pages)
            pages.give_back(anchor)
            pages.trim(0)
            measured.wait_until_free()
            for _ in range(self._plan.repeats):
                measured.switch_off()  # once the secure world has noticed that it holds nothing
                measured.switch_on()
                spent = measured.cost("protect", _TIMES)
                self._note("protection off", spent["off_ns"])
                self._note("protection on", spent["on_ns"])

    def _measure(self, measured: MeasuredMachine, pages: GuestPages) -> None:
        self._note("empty", measured.cost("empty", _CALLS)["ns"])
        self._note("version", measured.cost("version", _CALLS)["ns"])
        for count in _PAGES:
            spent = measured.cost("grant", _CALLS, count)
            if spent["status"] == 0:
                self._note(f"grant {count}", spent["ns"])
                self._note(f"return {count}", spent["return_ns"])
            self._measure_take(measured, pages, count)

    def _measure_take(self, measured: MeasuredMachine, pages: GuestPages, count: int) -> None:
        """Note the time of one TAKE, if the pages lie side by side, so that it is one."""
        runs = pages.take(count)
        before = measured.counters()
        pages.give_back(runs)
        if len(runs) != 1:
            return
        for _ in range(_LOOKS):  # the OS has the pages a moment before its driver has counted the call
            if spent := measured.counters()["take_ns"] - before["take_ns"]:
                self._note(f"take {count}", spent)
                return

    def _note(self, name: str, nanoseconds: float) -> None:
        self._samples.setdefault(name, []).append(nanoseconds)

    def report(self) -> dict[str, Any]:
        """Return the median nanoseconds of each call, and of one page of it."""
        found = {name: statistics.median(samples) for name, samples in self._samples.items()}
        sized = {name: int(name.split()[1]) for name in found if name.split()[-1].isdigit()}
        return {
            "ns": found,
            "ns_per_page": {name: found[name] / pages for name, pages in sized.items()},
            "samples": self._samples,
        }
