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

CHUNK = 16 * KIB


class TestSimSecureMemory(SecureMemoryContract):
    def create_memory(self) -> SecureMemory:
        return SimSecureMemory(total=64 * CHUNK, chunk=CHUNK)

    @contextmanager
    def scarce_memory(self, chunks: int) -> Iterator[SecureMemory]:
        yield SimSecureMemory(total=chunks * CHUNK, chunk=CHUNK)


class SimMachine(SecureMemoryMachine):
    def create_memory(self) -> SecureMemory:
        return SimSecureMemory(total=MIB, chunk=4 * KIB)


TestSimAtRandom = SimMachine.TestCase


def test_a_view_that_outlives_its_memory_raises_at_its_next_use():
    memory = SimSecureMemory(total=MIB, chunk=CHUNK)
    arena = memory.reserve(2 * CHUNK)
    memory.commit(arena, 0, 2 * CHUNK)
    dead, alive = memory.view(arena, 0, 8), memory.view(arena, CHUNK, 8)
    memory.release(arena, 0, CHUNK)
    with pytest.raises(ValueError, match="released"):
        dead[0] = 1
    alive[0] = 1


def test_releasing_memory_under_a_buffer_in_use_raises_and_changes_nothing():
    memory = SimSecureMemory(total=MIB, chunk=CHUNK)
    arena = memory.reserve(CHUNK)
    memory.commit(arena, 0, CHUNK)
    view = memory.view(arena, 0, 8)
    view[:] = b"computed"
    search = re.finditer(b"u", view)  # holds the buffer until it is done
    with pytest.raises(InternalError):
        memory.release(arena, 0, CHUNK)
    assert bytes(memory.view(arena, 0, 8)) == b"computed"
    assert memory.resident() == CHUNK
    del search
    memory.release(arena, 0, CHUNK)
    assert memory.resident() == 0


def test_addresses_are_the_same_in_every_run():
    bases = [
        [memory.reserve(size).base for size in (CHUNK, 5 * CHUNK, CHUNK)]
        for memory in (SimSecureMemory(total=MIB), SimSecureMemory(total=MIB))
    ]
    assert bases[0] == bases[1]
