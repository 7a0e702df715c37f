"""Memory of the TrustZone machine keeps the contract of SecureMemory, whatever its OS does."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest

from flexserve.errors import GrantRefusedError, InternalError
from flexserve.platforms.ports import Arena, SecureMemory
from flexserve.platforms.trustzone.pool import Run
from flexserve.platforms.trustzone.ram import BASE, PAGE
from flexserve.platforms.trustzone.secure_memory import DEFAULT_CHUNK, TrustZoneMemory
from flexserve.testing.fake_os import Babbling, Driver, Fickle, Scattering
from flexserve.testing.secure_memory import SecureMemoryContract
from flexserve.testing.stateful import SecureMemoryMachine
from flexserve.testing.trustzone import FakeMachine
from flexserve.units import KIB, MIB

CHUNK = 64 * KIB


class OnFakeMachine(SecureMemoryContract):
    def driver(self, most: int | None = None) -> Driver:
        return Driver(most=most)

    @pytest.fixture(autouse=True)
    def machines(self) -> Iterator[None]:
        with ExitStack() as self.running:
            yield

    def create_memory(self) -> SecureMemory:
        machine = self.running.enter_context(FakeMachine(40 * MIB, self.driver()))
        self.running.callback(machine.check)
        return TrustZoneMemory(machine.pages(), CHUNK)

    @contextmanager
    def scarce_memory(self, chunks: int) -> Iterator[SecureMemory]:
        with FakeMachine(40 * MIB, self.driver(most=chunks * CHUNK // 4096)) as machine:
            yield TrustZoneMemory(machine.pages(), CHUNK)


class TestTrustZoneMemory(OnFakeMachine):
    pass


class TestTrustZoneMemoryInPieces(OnFakeMachine):
    def driver(self, most: int | None = None) -> Driver:
        return Scattering(most=most)


class TestTrustZoneMemoryOfABabblingOs(OnFakeMachine):
    def driver(self, most: int | None = None) -> Driver:
        return Babbling(most=most)


class TrustZoneMachine(SecureMemoryMachine):
    def driver(self) -> Driver:
        return Driver()

    def create_memory(self) -> SecureMemory:
        self.machine = FakeMachine(40 * MIB, self.driver())
        self.machine.__enter__()
        return TrustZoneMemory(self.machine.pages(), 4 * KIB)

    def teardown(self) -> None:
        super().teardown()
        self.machine.check()
        self.machine.__exit__(None, None, None)


class Patient:
    """Memory that asks again when it was refused, as the refusal says one can."""

    def __init__(self, memory: SecureMemory) -> None:
        self._memory = memory

    def __getattr__(self, name: str) -> Any:
        return getattr(self._memory, name)

    def commit(self, arena: Arena, offset: int, length: int) -> None:
        for _ in range(100):
            with suppress(GrantRefusedError):
                return self._memory.commit(arena, offset, length)
        raise AssertionError("an OS that changes its mind now and then never let us have it")


class FickleMachine(TrustZoneMachine):
    def driver(self) -> Driver:
        return Fickle()

    def create_memory(self) -> SecureMemory:
        return Patient(super().create_memory())


TestTrustZoneAtRandom = TrustZoneMachine.TestCase
TestTrustZoneOfAFickleOsAtRandom = FickleMachine.TestCase


def test_chunks_of_two_mebibytes_are_the_default():
    with FakeMachine(40 * MIB) as machine:
        assert TrustZoneMemory(machine.pages()).chunk == DEFAULT_CHUNK == 2 * MIB


@pytest.mark.parametrize("driver", [Driver, Scattering])
def test_what_is_behind_an_address_is_what_can_be_read_there(driver: type[Driver]):
    with FakeMachine(40 * MIB, driver()) as machine:
        memory = TrustZoneMemory(machine.pages(), CHUNK)
        arena = memory.reserve(4 * CHUNK)
        memory.commit(arena, CHUNK, 2 * CHUNK)
        view = memory.view(arena, CHUNK, 2 * CHUNK)
        for page in range(len(view) // PAGE):
            view[page * PAGE] = page
        for first, pages in ((0, 1), (0, 32), (3, 7), (15, 2), (31, 1)):
            runs = memory.behind(arena.base + CHUNK + first * PAGE, pages * PAGE)
            found = [machine.monitor.ram.window(ipa - BASE, PAGE)[0] for run in runs for ipa in _pages(run)]
            assert found == list(range(first, first + pages))
        for address, length in ((arena.base, PAGE), (arena.base + 2 * CHUNK, 2 * CHUNK), (PAGE, PAGE)):
            with pytest.raises(InternalError):
                memory.behind(address, length)


def _pages(run: Run) -> range:
    return range(run.ipa, run.end, PAGE)
