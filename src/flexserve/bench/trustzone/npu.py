"""The NPU between the worlds: what changing hands costs, starting its jobs, and keeping its tables."""

from __future__ import annotations

import statistics
from typing import Any

from flexserve.bench.trustzone.measured_machine import MeasuredMachine, Say
from flexserve.bench.trustzone.plan import Allocator, Plan
from flexserve.bench.trustzone.secure_npu_client import SecureNpuClient
from flexserve.errors import InternalError
from flexserve.platforms.trustzone.abi import CALL_PAGES_MAX
from flexserve.platforms.trustzone.guest_pages import GuestPages

_MULTIPLY = ("run", "npu", "multiply", "8", "8", "32")  # the normal world's smallest jobs; how often
_LONG = 120.0  # seconds


class Handovers:
    """Measures, and keeps seconds by what was measured.

    `enter` and `leave` are the guest's time in which the NPU is nobody's: from NPU_GRANT until it is
    SECURE, and from the first POLL that waits for the reset after NPU_RELEASE until it is NORMAL.
    `borrow` and `give_back` are the whole way there and back, as the secure side sees it.
    """

    def __init__(self, plan: Plan, say: Say) -> None:
        self._plan, self._say = plan, say
        self._samples: dict[str, list[float]] = {}

    def round(self, number: int) -> None:
        """Measure everything some times, on a machine of its own."""
        self._say(f"round {number + 1}: the NPU between the worlds")
        with MeasuredMachine.set(self._plan, Allocator.FLEXMEM, self._say, npu=True) as measured:
            self._launch_for_the_os(measured)
            with measured.secure_core() as pages:
                client = SecureNpuClient(pages, measured.machine.npu_driver)
                for _ in range(self._plan.npu.handovers):
                    self._hand_over(measured, client)
                for _ in range(self._plan.repeats):
                    self._move_pages(measured, pages)

    def _hand_over(self, measured: MeasuredMachine, client: SecureNpuClient) -> None:
        driver = measured.npu_counters()
        self._note("borrow", client.borrow())
        for _ in range(self._plan.npu.launches):
            self._note("launch", client.launch())
        granted = _after(measured, "grants", driver)
        self._note("enter", (granted["grant_ns"] - driver["grant_ns"]) / 1e9)
        waited = measured.counters()["wait_ns"]
        self._note("give_back", client.give_back())
        _after(measured, "backs", driver)
        self._note("leave", (measured.counters()["wait_ns"] - waited) / 1e9)

    def _launch_for_the_os(self, measured: MeasuredMachine) -> None:
        """From SUBMIT, which pins memory and builds tables, until the job is started; the queue is empty."""
        times = self._plan.npu.launches
        before = measured.npu_counters()
        done = measured.machine.agent.ask(*_MULTIPLY, str(times), seconds=_LONG)
        after = measured.npu_counters()
        if done["status"] != 0:
            raise InternalError(f"The guest's jobs failed: {done}.", hint="Report this.")
        jobs = after["jobs"] - before["jobs"]
        self._note("launch_normal", (after["launch_ns"] - before["launch_ns"]) / jobs / 1e9)

    def _move_pages(self, measured: MeasuredMachine, pages: GuestPages) -> None:
        """COMMIT and RECALL, in the POLLs that carry them out: the NPU's tree and the states change."""
        if pages.want(CALL_PAGES_MAX, CALL_PAGES_MAX) < CALL_PAGES_MAX:
            raise InternalError("The guest has no memory left.", hint="Report this.")
        pages_here, seconds = CALL_PAGES_MAX, [_polled(measured)]
        runs = pages.take(pages_here)
        seconds.append(_polled(measured))
        pages.give_back(runs)
        seconds.append(_polled(measured))
        self._note("commit", (seconds[1] - seconds[0]) / pages_here)
        self._note("recall", (seconds[2] - seconds[1]) / pages_here)

    def _note(self, name: str, seconds: float) -> None:
        self._samples.setdefault(name, []).append(seconds)

    def report(self) -> dict[str, Any]:
        """Return the median seconds of each; `commit` and `recall` are those of one page of 512."""
        return {
            "seconds": {name: statistics.median(samples) for name, samples in self._samples.items()},
            "samples": self._samples,
        }


def _polled(measured: MeasuredMachine) -> float:
    return measured.counters()["poll_ns"] / 1e9


def _after(measured: MeasuredMachine, counter: str, before: dict[str, int]) -> dict[str, int]:
    """Return the driver's counters once it has counted one more, which may be after the monitor told."""
    found = measured.npu_counters()

    def counted() -> bool:
        found.update(measured.npu_counters())
        return found[counter] > before[counter]

    measured.wait(counted, "The driver does not count what became of its NPU.")
    return found
