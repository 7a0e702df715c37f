"""The kit itself: it fails memories that break a law, each in the test that names the law."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from flexserve.errors import GrantRefusedError
from flexserve.platforms.ports import Arena, SecureMemory
from flexserve.simulator.secure_memory import SimSecureMemory
from flexserve.testing.faults import Refusing
from flexserve.testing.secure_memory import CHUNKS, SecureMemoryContract, managed
from flexserve.testing.stateful import SecureMemoryMachine
from flexserve.units import KIB

CHUNK = 4 * KIB
FAILURE = (AssertionError, pytest.fail.Exception)


class Unscrubbed(SimSecureMemory):
    def _scrub(self, arena: Arena, offset: int, length: int) -> None:
        pass


class GreedyScrub(SimSecureMemory):
    def _scrub(self, arena: Arena, offset: int, length: int) -> None:
        super()._scrub(arena, offset, min(length + self.chunk, arena.size - offset))


class Leaky(SimSecureMemory):
    def _take(self, length: int) -> None:
        super()._take(max(length, 0))


class HalfCommitted(SimSecureMemory):
    """Commits chunk by chunk and forgets to undo what it did before a refusal."""

    def commit(self, arena: Arena, offset: int, length: int) -> None:
        for start in range(offset, offset + length, self.chunk):
            super().commit(arena, start, self.chunk)


class Kit(SecureMemoryContract):
    def __init__(self, kind: type[SimSecureMemory]) -> None:
        self.kind = kind

    def create_memory(self) -> SecureMemory:
        return self.kind(total=64 * CHUNK, chunk=CHUNK)

    @contextmanager
    def scarce_memory(self, chunks: int) -> Iterator[SecureMemory]:
        yield self.kind(total=chunks * CHUNK, chunk=CHUNK)


@pytest.mark.parametrize(
    ("kind", "law"),
    [
        (Unscrubbed, SecureMemoryContract.test_released_memory_reads_zeros_when_committed_again),
        (GreedyScrub, SecureMemoryContract.test_a_release_leaves_its_neighbours_untouched),
        (Leaky, SecureMemoryContract.test_touched_memory_is_counted_and_released_memory_is_not),
    ],
)
def test_the_kit_fails_a_memory_that_breaks_a_law(kind: type[SimSecureMemory], law: Callable[..., None]):
    for each, broken in ((SimSecureMemory, False), (kind, True)):
        kit = Kit(each)
        memory = managed(kit.create_memory())
        arena = memory.reserve(CHUNKS * CHUNK)
        if not broken:
            law(kit, memory, arena)
            continue
        with pytest.raises(FAILURE):
            law(kit, memory, arena)


def test_the_kit_fails_a_memory_that_leaves_half_a_refused_commit():
    Kit(SimSecureMemory).test_a_refused_commit_leaves_everything_as_it_was()
    with pytest.raises(FAILURE):
        Kit(HalfCommitted).test_a_refused_commit_leaves_everything_as_it_was()


@pytest.mark.parametrize("kind", [Unscrubbed, GreedyScrub, Leaky])
def test_a_random_walk_finds_a_memory_that_breaks_a_law(kind: type[SimSecureMemory]):
    class Machine(SecureMemoryMachine):
        def create_memory(self) -> SecureMemory:
            return kind(total=256 * CHUNK, chunk=CHUNK)

    walk = settings(
        max_examples=1000,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Machine, settings=walk)


def test_a_refusing_memory_grants_as_often_as_it_was_told():
    memory = Refusing(SimSecureMemory(total=64 * CHUNK, chunk=CHUNK), after=2)
    arena = memory.reserve(4 * CHUNK)
    memory.commit(arena, 0, CHUNK)
    memory.commit(arena, CHUNK, CHUNK)
    with pytest.raises(GrantRefusedError):
        memory.commit(arena, 2 * CHUNK, CHUNK)
    assert memory.resident() == 2 * CHUNK
