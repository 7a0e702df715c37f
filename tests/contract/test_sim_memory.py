"""The simulated memory keeps the contract of SecureMemory."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from flexserve.errors import InternalError
from flexserve.platforms.ports import SecureMemory
from flexserve.simulator.secure_memory import SimSecureMemory
from flexserve.testing.secure_memory import SecureMemoryContract
from flexserve.testing.stateful import SecureMemoryMachine
from flexserve.units import KIB, MIB

GRANULE = 16 * KIB


class TestSimSecureMemory(SecureMemoryContract):
    def create_memory(self) -> SecureMemory:
        return SimSecureMemory(total=64 * GRANULE, granule=GRANULE)

    @contextmanager
    def scarce_memory(self, granules: int) -> Iterator[SecureMemory]:
        yield SimSecureMemory(total=granules * GRANULE, granule=GRANULE)


class SimMachine(SecureMemoryMachine):
    def create_memory(self) -> SecureMemory:
        return SimSecureMemory(total=MIB, granule=4 * KIB)


TestSimAtRandom = SimMachine.TestCase


def test_a_view_that_outlives_its_memory_raises_at_its_next_use():
    memory = SimSecureMemory(total=MIB, granule=GRANULE)
    arena = memory.reserve(2 * GRANULE)
    memory.commit(arena, 0, 2 * GRANULE)
    dead, alive = memory.view(arena, 0, 8), memory.view(arena, GRANULE, 8)
    memory.release(arena, 0, GRANULE)
    with pytest.raises(ValueError, match="released"):
        dead[0] = 1
    alive[0] = 1


def test_releasing_memory_under_a_buffer_in_use_raises_and_changes_nothing():
    memory = SimSecureMemory(total=MIB, granule=GRANULE)
    arena = memory.reserve(GRANULE)
    memory.commit(arena, 0, GRANULE)
    view = memory.view(arena, 0, 8)
    view[:] = b"computed"
    search = re.finditer(b"u", view)  # holds the buffer until it is done
    with pytest.raises(InternalError):
        memory.release(arena, 0, GRANULE)
    assert bytes(memory.view(arena, 0, 8)) == b"computed"
    assert memory.resident() == GRANULE
    del search
    memory.release(arena, 0, GRANULE)
    assert memory.resident() == 0


def test_addresses_are_the_same_in_every_run():
    bases = [
        [memory.reserve(size).base for size in (GRANULE, 5 * GRANULE, GRANULE)]
        for memory in (SimSecureMemory(total=MIB), SimSecureMemory(total=MIB))
    ]
    assert bases[0] == bases[1]
