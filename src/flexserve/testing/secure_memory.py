"""The contract of the SecureMemory port, as tests that every adapter must pass.

An adapter is driven as in a secure world: by a FlexMem, which refuses what its caller may not do. So the
tests hold for the two together, and say which of both is wrong only by what they try.

To test an adapter, derive a class in a test module of yours:

    class TestMyMemory(SecureMemoryContract):
        def create_memory(self) -> SecureMemory:
            return MyMemory()

        @contextmanager
        def scarce_memory(self, chunks: int) -> Iterator[SecureMemory]:
            yield MyMemory(limit=chunks * CHUNK)
"""

from __future__ import annotations

import abc
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator

import pytest

from flexserve.errors import GrantRefusedError, InternalError
from flexserve.platforms.ports import Arena, SecureMemory
from flexserve.trusted.memory.flexmem import FlexMem, OpenHanded

CHUNKS = 8  # of the arena that most tests work in
_CAPACITY = 4096  # chunks of the machine: more than any test commits
_TOUCH_STEP = 4096  # the smallest page of any machine: one byte in each makes the whole range resident


def managed(memory: SecureMemory) -> FlexMem:
    """Return the FlexMem that drives `memory`, with a normal world that grants all it is asked for."""
    return FlexMem(memory, _CAPACITY * memory.chunk, OpenHanded())


class SecureMemoryContract(abc.ABC):
    """The laws of SecureMemory. Abstract: an adapter's test module says how to make one."""

    pytestmark = pytest.mark.timeout(60)  # an adapter that hangs has failed

    @abc.abstractmethod
    def create_memory(self) -> SecureMemory:
        """Return a fresh adapter with room for at least 64 chunks."""

    @abc.abstractmethod
    def scarce_memory(self, chunks: int) -> contextlib.AbstractContextManager[SecureMemory]:
        """Return a context with an adapter whose OS has `chunks` chunks to give and no more."""

    @pytest.fixture
    def memory(self) -> FlexMem:
        return managed(self.create_memory())

    @pytest.fixture
    def arena(self, memory: FlexMem) -> Iterator[Arena]:
        arena = memory.reserve(CHUNKS * memory.chunk)
        yield arena
        memory.free(arena)

    # Arenas

    def test_a_chunk_is_a_power_of_two(self, memory: FlexMem) -> None:
        assert memory.chunk > 0
        assert memory.chunk & (memory.chunk - 1) == 0

    def test_the_label_says_something_to_people(self, memory: FlexMem) -> None:
        assert memory.protection.name
        assert memory.protection.summary.endswith(".")

    def test_an_arena_is_whole_chunks_on_a_chunk_boundary(self, memory: FlexMem) -> None:
        arena = memory.reserve(memory.chunk + 1)
        assert arena.size == 2 * memory.chunk
        assert arena.base % memory.chunk == 0
        memory.free(arena)

    def test_arenas_do_not_overlap(self, memory: FlexMem) -> None:
        arenas = [memory.reserve(count * memory.chunk) for count in (1, 3, 2)]
        spans = sorted((arena.base, arena.base + arena.size) for arena in arenas)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
        for arena in arenas:
            memory.free(arena)

    def test_a_reservation_uses_no_memory(self, memory: FlexMem) -> None:
        before = memory.resident()
        arena = memory.reserve(CHUNKS * memory.chunk)
        assert memory.resident() == before
        memory.free(arena)

    # What memory reads as

    def test_fresh_memory_reads_zeros(self, memory: FlexMem, arena: Arena) -> None:
        memory.commit(arena, 0, arena.size)
        assert bytes(memory.view(arena, 0, arena.size)) == bytes(arena.size)

    def test_memory_reads_as_it_was_written(self, memory: FlexMem, arena: Arena) -> None:
        memory.commit(arena, 0, 2 * memory.chunk)
        memory.view(arena, memory.chunk - 2, 4)[:] = b"abcd"
        assert bytes(memory.view(arena, memory.chunk - 3, 6)) == b"\0abcd\0"

    def test_two_views_of_a_range_see_the_same_memory(self, memory: FlexMem, arena: Arena) -> None:
        memory.commit(arena, 0, memory.chunk)
        one, other = memory.view(arena, 0, 8), memory.view(arena, 4, 8)
        one[4:] = b"seen"
        assert bytes(other[:4]) == b"seen"

    def test_released_memory_reads_zeros_when_committed_again(self, memory: FlexMem, arena: Arena) -> None:
        memory.commit(arena, 0, arena.size)
        _fill(memory, arena, 0, arena.size, 0xA5)
        memory.release(arena, 0, arena.size)
        memory.commit(arena, 0, arena.size)
        assert bytes(memory.view(arena, 0, arena.size)) == bytes(arena.size)

    def test_memory_kept_at_its_release_reads_zeros_when_committed_elsewhere(
        self, memory: FlexMem, arena: Arena
    ) -> None:
        before = memory.resident()
        memory.commit(arena, 0, 2 * memory.chunk)
        _fill(memory, arena, 0, 2 * memory.chunk, 0xA5)
        memory.recycle(arena, 0, 2 * memory.chunk)
        with pytest.raises(InternalError):
            memory.view(arena, 0, 1)
        memory.commit(arena, 4 * memory.chunk, 2 * memory.chunk)
        assert not any(memory.view(arena, 4 * memory.chunk, 2 * memory.chunk))
        assert abs(memory.resident() - before - 2 * memory.chunk) <= memory.chunk

    def test_a_release_leaves_its_neighbours_untouched(self, memory: FlexMem, arena: Arena) -> None:
        unit = memory.chunk
        memory.commit(arena, 0, 5 * unit)
        for index in range(5):
            _fill(memory, arena, index * unit, unit, index + 1)
        memory.release(arena, unit, 3 * unit)
        assert bytes(memory.view(arena, 0, unit)) == bytes([1]) * unit
        assert bytes(memory.view(arena, 4 * unit, unit)) == bytes([5]) * unit

    def test_a_commit_leaves_its_neighbours_untouched(self, memory: FlexMem, arena: Arena) -> None:
        unit = memory.chunk
        memory.commit(arena, 0, unit)
        memory.commit(arena, 2 * unit, unit)
        _fill(memory, arena, 0, unit, 7)
        _fill(memory, arena, 2 * unit, unit, 9)
        memory.commit(arena, unit, unit)
        assert bytes(memory.view(arena, 0, 3 * unit)) == bytes([7]) * unit + bytes(unit) + bytes([9]) * unit

    # Views

    def test_a_view_has_the_length_asked_for_and_is_writable(self, memory: FlexMem, arena: Arena) -> None:
        memory.commit(arena, 0, memory.chunk)
        view = memory.view(arena, 3, 17)
        assert (view.nbytes, view.itemsize, view.readonly) == (17, 1, False)

    def test_a_view_of_memory_that_is_not_there_is_refused(self, memory: FlexMem, arena: Arena) -> None:
        with pytest.raises(InternalError):
            memory.view(arena, 0, 1)

    def test_a_view_that_reaches_past_committed_memory_is_refused(
        self, memory: FlexMem, arena: Arena
    ) -> None:
        memory.commit(arena, 0, memory.chunk)
        with pytest.raises(InternalError):
            memory.view(arena, memory.chunk - 1, 2)

    def test_a_view_outside_the_arena_is_refused(self, memory: FlexMem, arena: Arena) -> None:
        memory.commit(arena, 0, arena.size)
        for offset, length in ((arena.size - 1, 2), (-1, 2), (0, arena.size + 1)):
            with pytest.raises(InternalError):
                memory.view(arena, offset, length)

    def test_no_view_is_given_of_released_memory(self, memory: FlexMem, arena: Arena) -> None:
        memory.commit(arena, 0, 2 * memory.chunk)
        memory.release(arena, 0, memory.chunk)
        with pytest.raises(InternalError):
            memory.view(arena, 0, 1)
        assert bytes(memory.view(arena, memory.chunk, 1)) == b"\0"

    # What is refused changes nothing

    @pytest.mark.parametrize(
        ("offset", "length"),
        [(0, 9), (8, 1), (-1, 1), (0, -1)],
        ids=["too long", "past", "before", "negative"],
    )
    def test_a_range_outside_the_arena_raises_and_changes_nothing(
        self, memory: FlexMem, arena: Arena, offset: int, length: int
    ) -> None:
        self._raises_and_changes_nothing(
            memory, arena, lambda call: call(arena, offset * memory.chunk, length * memory.chunk)
        )

    @pytest.mark.parametrize(
        ("offset", "length"), [(1, 0), (0, 1), (-1, 1)], ids=["offset", "length", "both"]
    )
    def test_an_unaligned_range_raises_and_changes_nothing(
        self, memory: FlexMem, arena: Arena, offset: int, length: int
    ) -> None:
        half = memory.chunk // 2
        self._raises_and_changes_nothing(
            memory,
            arena,
            lambda call: call(arena, 2 * memory.chunk + offset * half, memory.chunk + length * half),
        )

    def test_a_double_commit_raises_and_changes_nothing(self, memory: FlexMem, arena: Arena) -> None:
        unit = memory.chunk
        memory.commit(arena, unit, unit)
        _fill(memory, arena, unit, unit, 3)
        with pytest.raises(InternalError):
            memory.commit(arena, 0, 3 * unit)
        assert bytes(memory.view(arena, unit, unit)) == bytes([3]) * unit
        memory.commit(arena, 0, unit)
        memory.commit(arena, 2 * unit, unit)

    def test_a_double_release_raises_and_changes_nothing(self, memory: FlexMem, arena: Arena) -> None:
        unit = memory.chunk
        memory.commit(arena, 0, 3 * unit)
        _fill(memory, arena, 0, 3 * unit, 3)
        memory.release(arena, unit, unit)
        with pytest.raises(InternalError):
            memory.release(arena, 0, 3 * unit)
        assert bytes(memory.view(arena, 0, unit)) == bytes([3]) * unit
        assert bytes(memory.view(arena, 2 * unit, unit)) == bytes([3]) * unit
        with pytest.raises(InternalError):
            memory.release(arena, unit, unit)

    def test_releasing_nothing_is_always_safe(self, memory: FlexMem, arena: Arena) -> None:
        memory.release(arena, 0, 0)
        memory.commit(arena, 0, memory.chunk)
        memory.release(arena, 0, 0)
        assert bytes(memory.view(arena, 0, 1)) == b"\0"

    def test_a_refused_commit_leaves_everything_as_it_was(self) -> None:
        with self.scarce_memory(3) as scarce:
            memory = managed(scarce)
            unit = memory.chunk
            arena = memory.reserve(CHUNKS * unit)
            memory.commit(arena, 0, unit)
            _fill(memory, arena, 0, unit, 0x5A)
            before = memory.resident()
            with pytest.raises(GrantRefusedError) as refusal:
                memory.commit(arena, 2 * unit, 4 * unit)
            assert refusal.value.hint
            assert memory.resident() == before
            for index in range(1, CHUNKS):
                with pytest.raises(InternalError):
                    memory.view(arena, index * unit, 1)
            assert bytes(memory.view(arena, 0, unit)) == bytes([0x5A]) * unit
            memory.release(arena, 0, unit)
            memory.free(arena)

    def test_a_refused_commit_can_be_tried_again(self) -> None:
        with self.scarce_memory(3) as scarce:
            memory = managed(scarce)
            unit = memory.chunk
            arena = memory.reserve(CHUNKS * unit)
            with pytest.raises(GrantRefusedError):
                memory.commit(arena, 0, 4 * unit)
            memory.free(arena)
        with self.scarce_memory(3) as scarce:
            memory = managed(scarce)
            arena = memory.reserve(CHUNKS * unit)
            memory.commit(arena, 0, 3 * unit)
            with pytest.raises(GrantRefusedError):
                memory.commit(arena, 3 * unit, unit)
            assert bytes(memory.view(arena, 0, 3 * unit)) == bytes(3 * unit)
            memory.free(arena)

    # What the OS gets back

    def test_touched_memory_is_counted_and_released_memory_is_not(
        self, memory: FlexMem, arena: Arena
    ) -> None:
        before = memory.resident()
        memory.commit(arena, 0, arena.size)
        _touch(memory, arena, 0, arena.size)
        assert abs(memory.resident() - before - arena.size) <= memory.chunk
        memory.release(arena, 0, arena.size // 2)
        assert abs(memory.resident() - before - arena.size // 2) <= memory.chunk
        memory.release(arena, arena.size // 2, arena.size // 2)
        assert abs(memory.resident() - before) <= memory.chunk

    def test_what_lies_ready_is_what_was_kept_and_no_more_than_is_unused(
        self, memory: FlexMem, arena: Arena
    ) -> None:
        assert memory.ready() == 0
        memory.commit(arena, 0, 4 * memory.chunk)
        assert memory.ready() == 0
        memory.recycle(arena, 0, 3 * memory.chunk)
        assert 0 <= memory.ready() <= memory.unused()
        memory.commit(arena, 0, memory.chunk)
        assert 0 <= memory.ready() <= 2 * memory.chunk
        memory.return_unused()
        assert memory.ready() == 0

    def test_free_gives_everything_back(self, memory: FlexMem) -> None:
        before = memory.resident()
        arena = memory.reserve(CHUNKS * memory.chunk)
        memory.commit(arena, memory.chunk, 2 * memory.chunk)
        memory.commit(arena, 5 * memory.chunk, memory.chunk)
        _touch(memory, arena, memory.chunk, 2 * memory.chunk)
        memory.free(arena)
        assert memory.resident() <= before

    def test_a_freed_arena_is_dead(self, memory: FlexMem) -> None:
        arena = memory.reserve(memory.chunk)
        memory.free(arena)
        calls: list[Callable[[Arena, int, int], object]] = [
            *(memory.commit, memory.try_commit, memory.release, memory.recycle, memory.view)
        ]
        for call in calls:
            with pytest.raises(InternalError):
                call(arena, 0, memory.chunk)
        with pytest.raises(InternalError):
            memory.free(arena)

    def test_an_arena_of_another_memory_is_refused(self, memory: FlexMem) -> None:
        stranger = Arena(base=64 * memory.chunk, size=memory.chunk)
        with pytest.raises(InternalError):
            memory.commit(stranger, 0, memory.chunk)

    def test_memory_comes_and_goes_many_times_without_a_leak(self, memory: FlexMem, arena: Arena) -> None:
        before = memory.resident()
        for _ in range(50):
            memory.commit(arena, 0, 2 * memory.chunk)
            _touch(memory, arena, 0, 2 * memory.chunk)
            memory.release(arena, 0, 2 * memory.chunk)
        assert memory.resident() <= before

    # Threads

    def test_memory_may_be_counted_while_arenas_come_and_go(self, memory: FlexMem) -> None:
        done, failures = threading.Event(), list[BaseException]()

        def count() -> None:
            try:
                while not done.is_set():
                    assert 0 <= memory.resident() <= 2 * memory.chunk
            except BaseException as failure:
                failures.append(failure)

        counter = threading.Thread(target=count, daemon=True)
        counter.start()
        for _ in range(200):
            arena = memory.reserve(2 * memory.chunk)
            memory.commit(arena, 0, 2 * memory.chunk)
            memory.view(arena, 0, 1)[0] = 1
            memory.free(arena)
        done.set()
        counter.join(timeout=30)
        assert not counter.is_alive(), "counting hangs"
        assert failures == []

    def test_threads_may_work_on_disjoint_ranges(self, memory: FlexMem, arena: Arena) -> None:
        unit, workers, failures = memory.chunk, 4, list[BaseException]()
        gate = threading.Barrier(workers)

        def work(index: int) -> None:
            try:
                gate.wait(timeout=10)
                for turn in range(15):
                    memory.commit(arena, index * 2 * unit, 2 * unit)
                    view = memory.view(arena, index * 2 * unit, 2 * unit)
                    assert not any(view[::997]), "fresh memory was not zero"
                    view[:: _TOUCH_STEP // 2] = bytes([turn + 1]) * len(view[:: _TOUCH_STEP // 2])
                    assert view[0] == turn + 1, "another thread wrote here"
                    del view
                    memory.release(arena, index * 2 * unit, 2 * unit)
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        assert not any(thread.is_alive() for thread in threads), "a thread hangs"
        assert failures == []

    def _raises_and_changes_nothing(
        self,
        memory: FlexMem,
        arena: Arena,
        attempt: Callable[[Callable[[Arena, int, int], object]], object],
    ) -> None:
        unit = memory.chunk
        with pytest.raises(InternalError):
            attempt(memory.commit)
        with pytest.raises(InternalError):
            memory.view(arena, 2 * unit, 1)
        memory.commit(arena, 0, arena.size)
        _fill(memory, arena, 0, arena.size, 0x33)
        with pytest.raises(InternalError):
            attempt(memory.release)
        assert bytes(memory.view(arena, 0, arena.size)) == b"\x33" * arena.size


def _fill(memory: FlexMem, arena: Arena, offset: int, length: int, value: int) -> None:
    memory.view(arena, offset, length)[:] = bytes([value]) * length


def _touch(memory: FlexMem, arena: Arena, offset: int, length: int) -> None:
    view = memory.view(arena, offset, length)
    for position in range(0, length, _TOUCH_STEP):
        view[position] = 1
