"""A machine without QEMU: a monitor and an OS in Python behind the real mailbox's bytes.

The secure world cannot tell it from the emulated one: it maps the same RAM, reads the same page
states, writes the same rings and hears the same doorbell.

    with FakeMachine(ram_bytes=64 * MIB) as machine:
        memory = TrustZoneMemory(machine.pages())
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import msgspec

from flexserve.errors import MachineGoneError
from flexserve.platforms.ports import MemorySample, NormalMemory
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.abi import Byte, Notice, PageState
from flexserve.platforms.trustzone.guest_pages import GuestPages, Subscriber
from flexserve.platforms.trustzone.mailbox import Mailbox
from flexserve.platforms.trustzone.ram import PAGE, Ram
from flexserve.protocol.launch import SECURE_WORLD, SecureOptions
from flexserve.testing.fake_monitor import FakeMonitor
from flexserve.testing.fake_os import Driver
from flexserve.units import MIB


def eventually(condition: Callable[[], bool], *, within: float = 5.0) -> bool:
    """Wait until `condition` holds, `within` seconds; return whether it does."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


class FakeMachine:
    """RAM, a monitor and an OS, for as long as the context lasts. Attach as often as you like."""

    def __init__(self, ram_bytes: int = 64 * MIB, driver: Driver | None = None) -> None:
        self.fd = os.memfd_create("ram", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, ram_bytes)
        self.doorbell, self._bell = socket.socketpair()
        self.monitor = FakeMonitor(Ram(self.fd), self._bell)
        self.driver = driver or Driver()
        self.driver.start(self.monitor)
        self._running = threading.Lock()  # of the OS
        self._os = threading.Thread(target=self._run, name="fake-os", daemon=True)

    def __enter__(self) -> Self:
        self._os.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.die()
        self.doorbell.close()
        os.close(self.fd)

    def die(self) -> None:
        """End the machine as a crash of the emulator does."""
        with contextlib.suppress(OSError):
            self._bell.shutdown(socket.SHUT_RDWR)
        self._os.join(timeout=10)
        self._bell.close()

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        """Let the OS not run for a while."""
        with self._running:
            yield

    # ---- what a secure world process is started with: normal.guest.SecureCore

    program = SECURE_WORLD

    @property
    def secure_fds(self) -> tuple[int, int]:
        return self.fd, self.doorbell.fileno()

    def secure_options(self, options: SecureOptions) -> SecureOptions:
        ram, doorbell = self.secure_fds
        return msgspec.structs.replace(options, memory="trustzone", ram_fd=ram, doorbell_fd=doorbell)

    def renew(self) -> None:
        if not self._os.is_alive():
            raise MachineGoneError("The fake machine ended.", hint="Make another.")

    def reset_secure_core(self) -> None:
        self.mailbox().lay_to_rest(5)

    def memory(self) -> NormalMemory:
        return self

    def sample(self) -> MemorySample:
        free = self.driver.free * PAGE
        return MemorySample(self.monitor.hidden, free, None, free)

    def charged(self, pid: int) -> int:
        del pid
        return self.monitor.hidden - self.driver.free * PAGE

    # ---- looking

    def mailbox(self) -> Mailbox:
        """Return the secure world's end of the mailbox."""
        return Mailbox(Ram(self.fd), self.doorbell)

    def pages(self, subscriber: Subscriber | None = None, *, patience: float = 5.0) -> GuestPages:
        """Return the pages of a secure world that has begun. The one before it must have ended."""
        pages = self.unbegun(patience=patience)
        pages.start(subscriber)
        return pages

    def unbegun(self, *, patience: float = 5.0) -> GuestPages:
        """Return the pages of a secure world that is still to begin, by GuestPages.start."""
        return GuestPages(Ram(self.fd), self.mailbox(), patience=patience)

    def check(self) -> None:
        """Assert conservation, and that the OS has the pages that the monitor says, once it is idle."""
        eventually(lambda: self.monitor.counts()[PageState.NORMAL] == self.driver.free)
        counts = self.monitor.counts()
        assert sum(counts.values()) == self.monitor.ram.pages
        assert counts[PageState.MONITOR] * PAGE == abi.HIDDEN_BYTES
        assert counts[PageState.NORMAL] == self.driver.free
        assert self.driver.leaks == 0, f"{self.driver.leaks} pages came back unscrubbed"

    def settled(self, state: PageState, pages: int, *, within: float = 5.0) -> bool:
        """Wait until `pages` pages are in `state`; return whether they are."""
        return eventually(lambda: self.monitor.counts()[state] == pages, within=within)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while heard := self._bell.recv(4096):
                for byte in heard:
                    self.monitor.hear(byte)
                if Byte.RING in heard:
                    self.serve()

    def serve(self) -> None:
        """Do what the driver's interrupt does: poll until there is nothing to do."""
        with self._running:
            while (notice := self.monitor.poll())[0] is not Notice.NONE:
                if notice[0] is Notice.WAIT:
                    time.sleep(50e-6)
                self.driver.serve(notice)
