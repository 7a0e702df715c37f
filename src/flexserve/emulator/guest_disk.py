"""The emulated machine's disk as a program of the guest uses it: by the driver's commands, and its buffer."""

from __future__ import annotations

from collections.abc import Mapping

from flexserve.emulator.agent import Agent
from flexserve.platforms.trustzone.ram import BASE, PAGE, Ram


class GuestDisk:
    """The driver of the guest (driver/flexmem/disk.c) through its agent. Thread-safe.

    The host plays the program, so it has the buffer in the machine's RAM, where that program would map it.
    """

    def __init__(self, agent: Agent, ram_fd: int) -> None:
        self._agent, self._ram = agent, Ram(ram_fd)

    def disk(self, *words: str) -> Mapping[str, object]:
        """Have the driver carry a command out. Raises NormalWorldError, when it refuses: "guest_refused"."""
        return self._agent.ask("disk", *words)

    def memory(self, page: int, pages: int) -> memoryview:
        """Return `pages` pages of RAM from number `page` on. Raises MonitorError when they are not of RAM."""
        return self._ram.window(page * PAGE - BASE, pages * PAGE)
