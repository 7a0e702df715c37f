"""Memory of a real machine, with a monitor and a Linux of its own, keeps the contract of SecureMemory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pytest
from hypothesis import settings

from flexserve.emulator.machine import Machine
from flexserve.errors import GrantRefusedError
from flexserve.platforms.ports import SecureMemory
from flexserve.platforms.trustzone.guest_pages import GuestPages
from flexserve.platforms.trustzone.pool import Run, count
from flexserve.platforms.trustzone.ram import PAGE
from flexserve.platforms.trustzone.secure_memory import TrustZoneMemory, pages_of
from flexserve.testing.machines import booted
from flexserve.testing.secure_memory import SecureMemoryContract
from flexserve.testing.stateful import SecureMemoryMachine
from flexserve.units import KIB

pytestmark = pytest.mark.vm

CHUNK = 64 * KIB
_pages: list[GuestPages] = []  # of the machine that runs


@pytest.fixture(scope="module", autouse=True)
def machine() -> Iterator[Machine]:
    with booted() as machine:
        ram, doorbell = (os.dup(fd) for fd in machine.secure_fds)
        _pages.append(pages_of(ram, doorbell))
        _pages[0].start()
        yield machine
        _pages.clear()
    os.close(ram)


class Rationed:
    """The pages of a machine whose OS gives so many of them and no more."""

    def __init__(self, pages: GuestPages, most: int) -> None:
        self._pages, self._most = pages, most
        self.ram, self.resident, self.trim = pages.ram, pages.resident, pages.trim

    def take(self, pages: int) -> list[Run]:
        if pages > self._most:
            raise GrantRefusedError("No more is given.", hint="Expect this in a test.")
        self._most -= pages
        return self._pages.take(pages)

    def give_back(self, runs: list[Run]) -> None:
        self._most += count(runs)
        self._pages.give_back(runs)


class TestTrustZoneMemoryOnAMachine(SecureMemoryContract):
    def create_memory(self) -> SecureMemory:
        return TrustZoneMemory(_pages[0], CHUNK)

    @contextmanager
    def scarce_memory(self, chunks: int) -> Iterator[SecureMemory]:
        rationed = Rationed(_pages[0], chunks * CHUNK // PAGE)
        yield TrustZoneMemory(cast(GuestPages, rationed), CHUNK)


class MachineAtRandom(SecureMemoryMachine):
    def create_memory(self) -> SecureMemory:
        return TrustZoneMemory(_pages[0], 4 * KIB)


TestTrustZoneMachineAtRandom = MachineAtRandom.TestCase
TestTrustZoneMachineAtRandom.settings = settings(max_examples=20, deadline=None)
