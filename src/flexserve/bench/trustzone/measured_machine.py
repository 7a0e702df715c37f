"""A booted machine under measurement: its driver's counters, its background load, calls of its monitor."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator

from flexserve.bench.trustzone.plan import Allocator, Plan
from flexserve.emulator.build import Options, build
from flexserve.emulator.machine import Machine
from flexserve.errors import NormalWorldError
from flexserve.folders import cache_folder
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.guest_pages import GuestPages
from flexserve.platforms.trustzone.layout import hidden_offset
from flexserve.platforms.trustzone.mailbox import Mailbox
from flexserve.platforms.trustzone.ram import BASE, PAGE, Ram

Say = Callable[[str], None]

_LONG = 120.0  # seconds: an emulated machine that shares its cores is slow
_PROGRAMS = (True, False) * 7 + (True,)  # who stays
_STAYING = sum(_PROGRAMS)
_LIFE = 100_000  # seconds that they would stay if nobody stopped them
_LOOK = 0.1
_FILLED = 0.95  # of what the background will take: it counts per CPU, so the last pages show late


class MeasuredMachine:
    """A machine whose memory and monitor are measured from this process."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    @classmethod
    @contextlib.contextmanager
    def set(
        cls, plan: Plan, allocator: Allocator, say: Say, *, bootargs: str = "", npu: bool = False
    ) -> Iterator[MeasuredMachine]:
        """Boot a machine for `allocator`, with the module that makes calls and without idle windows.

        Only a machine for CMA has an area for it: what lies there is lost to other kernel memory.
        """
        area = plan.area if allocator is Allocator.CMA else 0
        images = build(
            cache_folder() / "trustzone",
            ram_bytes=plan.ram_bytes,
            cpus=plan.cpus,
            progress=say,
            options=Options(contiguous=area, bootargs=bootargs, npu=npu),
        )
        with Machine(images, ram_bytes=plan.ram_bytes, cpus=plan.cpus, npu=npu) as machine:
            measured = cls(machine)
            machine.agent.ask("load", "flexattack")
            measured.configure("idle_ms", 0)
            measured.configure("contiguous", int(allocator is Allocator.CMA))
            yield measured

    def configure(self, parameter: str, value: int) -> None:
        """Set a parameter of the driver."""
        self.machine.agent.ask("write", f"/sys/module/flexmem/parameters/{parameter}", str(value))

    # ---- the driver and the monitor ------------------------------------------------------------------

    def counters(self) -> dict[str, int]:
        """Return what the driver holds and has counted; times are nanoseconds of the guest."""
        return self.machine.agent.ask("flexmem", seconds=_LONG)

    def allocating(self) -> float:
        """Return the seconds of the guest in which the driver has allocated and handed over so far."""
        counters = self.counters()
        return (counters["allocate_ns"] + counters["grant_ns"]) / 1e9

    def npu_counters(self) -> dict[str, int]:
        """Return what the NPU's driver does and has counted; times are nanoseconds of the guest."""
        return self.machine.agent.ask("flexnpu", seconds=_LONG)

    def wait_until_free(self) -> None:
        """Wait until the driver has everything back. Raises NormalWorldError when it has not for long."""
        self.wait(lambda: self.counters()["held"] == 0, "The driver does not get all memory back.")

    def cost(self, *words: object) -> dict[str, int]:
        """Have the attack module time calls of the monitor (driver/flexattack/calls.c)."""
        return self.machine.agent.ask("attack", "cost", *map(str, words), seconds=_LONG)

    def switch_off(self) -> None:
        """Switch protection off. Everything must be given back. Raises NormalWorldError if it stays on."""
        self.wait(lambda: self._call(abi.Call.RELAX) == 0, "Protection does not go off.")

    def switch_on(self) -> None:
        """Switch protection on."""
        self._call(abi.Call.VERSION)

    @property
    def protected(self) -> bool:
        """Whether the kernel's reach ends before the monitor's memory; asking does not change it."""
        hidden = BASE + hidden_offset(self.machine.ram_bytes)
        return bool(self.machine.agent.ask("attack", "peek", "table", str(hidden))["fault"])

    def _call(self, call: abi.Call) -> int:
        return int(self.machine.agent.ask("attack", "smc", str(abi.SMC_BASE + call))["x0"])

    # ---- who uses memory -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def background(self, percent: int) -> Iterator[None]:
        """Have programs fill so much of RAM with anonymous memory, for the length of the block.

        Some more fill theirs at the same time, and end before it begins. So what stays, and what is
        free, lies everywhere, as on a machine that was used: one program alone would leave half of it
        untouched, and CMA an area with nothing to move.
        """
        agent, share = self.machine.agent, max(1, percent // _STAYING)
        wanted = self.anonymous() + _FILLED * share / 100 * agent.ask("meminfo")["total"] * len(_PROGRAMS)
        jobs = [str(agent.ask("start", "hog", str(share), str(_LIFE))["job"]) for _ in _PROGRAMS]
        try:
            self.wait(lambda: self.anonymous() >= wanted, "The background load does not fill its memory.")
            for place, stays in reversed(list(enumerate(_PROGRAMS))):
                if not stays:
                    agent.ask("stop", jobs.pop(place), seconds=_LONG)
            yield
        finally:
            for job in jobs:
                agent.ask("stop", job, seconds=_LONG)

    def anonymous(self) -> int:
        """Return the bytes of anonymous memory."""
        return self._number("/proc/meminfo", r"AnonPages: *(\d+)") * 1024

    def moved(self) -> int:
        """Return the pages that the kernel has moved since it started."""
        return self._number("/proc/vmstat", r"pgmigrate_success (\d+)")

    def _number(self, path: str, pattern: str) -> int:
        found = re.search(pattern, self.machine.agent.ask("read", path)["text"])
        return int(found[1]) if found else 0

    @contextlib.contextmanager
    def secure_core(self) -> Iterator[GuestPages]:
        """Have this process be the secure world, until the machine ends: there can be no other then.

        Its pages are not begun yet.
        """
        ram, doorbell = (os.dup(fd) for fd in self.machine.secure_fds)
        try:
            dram = Ram(ram)
            pages = GuestPages(dram, Mailbox(dram, socket.socket(fileno=doorbell)), patience=_LONG)
            yield pages
        finally:
            os.close(ram)

    @staticmethod
    def wait(condition: Callable[[], bool], otherwise: str) -> None:
        """Wait until `condition` holds. Raises NormalWorldError, saying `otherwise`, after two minutes."""
        deadline = time.monotonic() + _LONG
        while not condition():
            if time.monotonic() > deadline:
                raise NormalWorldError(otherwise, hint="Measure on a machine with nothing else to do.")
            time.sleep(_LOOK)


def pages_in(size: int) -> int:
    """Return how many pages `size` bytes are."""
    return size // PAGE
