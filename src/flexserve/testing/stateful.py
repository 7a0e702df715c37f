"""Random walks through the ports and the ownership table, against references that share no code with them.

Use in a test module:

    class MyMachine(SecureMemoryMachine):
        def create_memory(self) -> SecureMemory:
            return MyMemory(chunk=4096)

    TestMyMemory = MyMachine.TestCase
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
)

from flexserve.errors import GrantRefusedError, IllegalTransitionError, InternalError
from flexserve.platforms.ports import Arena, SecureMemory
from flexserve.testing.faults import Refusing
from flexserve.testing.secure_memory import managed
from flexserve.trusted.memory.ownership import OwnershipTable, PageEvent, PageState

# Small arenas, so that ranges collide often; and some that end past the end.
_SIZES = st.integers(3, 4)
_FIRST = st.integers(0, 3)
_COUNT = st.integers(1, 3)
_PLACES = (Fraction(0), Fraction(1, 2), Fraction(1))  # in a chunk; the last reaches into the next
_VALUES = st.integers(1, 255)
_PATIENCE = 2.0  # seconds for an OS to take what it was given
_MOSTLY = st.sampled_from([True, True, True, False])


class MemoryModel:
    """What Flex-Mem promises, in plain dictionaries: arena → chunk → its bytes."""

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk
        self.sizes: dict[Arena, int] = {}  # chunks of each arena
        self.contents: dict[Arena, dict[int, bytearray]] = {}
        self.touched: set[tuple[Arena, int]] = set()
        self.kept = 0  # chunks granted and not committed

    def reserve(self, arena: Arena, chunks: int) -> None:
        self.sizes[arena], self.contents[arena] = chunks, {}

    def may_commit(self, arena: Arena, first: int, count: int) -> bool:
        wanted = range(first, first + count)
        return first + count <= self.sizes[arena] and not any(g in self.contents[arena] for g in wanted)

    def may_release(self, arena: Arena, first: int, count: int) -> bool:
        wanted = range(first, first + count)
        return first + count <= self.sizes[arena] and all(g in self.contents[arena] for g in wanted)

    def commit(self, arena: Arena, first: int, count: int) -> None:
        self.take(count)
        for index in range(first, first + count):
            self.contents[arena][index] = bytearray(self.chunk)

    def take(self, count: int) -> None:
        self.kept = max(0, self.kept - count)

    def release(self, arena: Arena, first: int, count: int) -> None:
        for index in range(first, first + count):
            del self.contents[arena][index]
            self.touched.discard((arena, index))

    def free(self, arena: Arena) -> None:
        for index in list(self.contents[arena]):
            self.release(arena, index, 1)
        del self.sizes[arena], self.contents[arena]

    def write(self, arena: Arena, offset: int, data: bytes) -> None:
        for position, value in enumerate(data, offset):
            self.contents[arena][position // self.chunk][position % self.chunk] = value
            self.touched.add((arena, position // self.chunk))

    def committed_bytes(self) -> int:
        return self.chunk * sum(len(chunks) for chunks in self.contents.values())

    def touched_bytes(self) -> int:
        return self.chunk * len(self.touched)


class SecureMemoryMachine(RuleBasedStateMachine):
    """Drives a SecureMemory under its FlexMem at random next to a MemoryModel. Abstract: says not which."""

    arenas: Bundle[Arena] = Bundle("arenas")

    def __init__(self) -> None:
        super().__init__()
        self.os = Refusing(self.create_memory(), after=0)
        self.memory = managed(self.os)
        self.before = self.memory.resident()
        self.model = MemoryModel(self.memory.chunk)

    def create_memory(self) -> SecureMemory:
        """Return a fresh adapter with room for at least 256 chunks (small ones make this fast)."""
        raise TypeError("derive from SecureMemoryMachine and say which memory to drive")

    @precondition(lambda self: len(self.model.sizes) < 2)  # more would spread the steps too thin to find much
    @rule(target=arenas, chunks=_SIZES)
    def reserve(self, chunks: int) -> Arena:
        arena = self.memory.reserve(chunks * self.memory.chunk)
        assert arena.size == chunks * self.memory.chunk
        self.model.reserve(arena, chunks)
        return arena

    @rule(arena=arenas, first=_FIRST, count=_COUNT, value=_VALUES, granted=_MOSTLY)
    def commit(self, arena: Arena, first: int, count: int, value: int, granted: bool) -> None:
        unit = self.memory.chunk
        legal = self.model.may_commit(arena, first, count)
        self.os.after = int(granted)
        expected: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if not legal or not granted:
            expected = _raises(GrantRefusedError if legal else InternalError)
        with expected:
            self.memory.commit(arena, first * unit, count * unit)
        if legal and not granted:
            self.model.take(count)  # what was granted for it goes back
        if legal and granted:
            self.model.commit(arena, first, count)
            if value % 4:  # now and then, memory stays untouched
                self._use(arena, first, count, value)

    def _use(self, arena: Arena, first: int, count: int, value: int) -> None:
        """Do with fresh memory what everyone does: find it zero, and write to it."""
        unit = self.memory.chunk
        assert not any(self.memory.view(arena, first * unit, count * unit)), "fresh memory is not zero"
        for index in range(first, first + count):
            self.memory.view(arena, index * unit, 1)[0] = value
            self.model.write(arena, index * unit, bytes([value]))

    @rule(arena=arenas, first=_FIRST, count=_COUNT, keep=st.booleans())
    def release(self, arena: Arena, first: int, count: int, keep: bool) -> None:
        unit = self.memory.chunk
        legal = self.model.may_release(arena, first, count)
        give_up = self.memory.recycle if keep else self.memory.release
        with contextlib.nullcontext() if legal else _raises(InternalError):
            size = give_up(arena, first * unit, count * unit)
            assert size == count * unit
            if not keep:
                self.memory.report_returned(size)
        if legal:
            self.model.release(arena, first, count)
            self.model.kept += count if keep else 0

    @rule()
    def return_unused(self) -> None:
        assert self.memory.return_unused() == self.model.kept * self.memory.chunk
        self.model.kept = 0

    @rule(arena=arenas, pick=_FIRST, where=st.sampled_from(_PLACES), value=st.integers(1, 255), size=_SIZES)
    def write(self, arena: Arena, pick: int, where: Fraction, value: int, size: int) -> None:
        unit = self.memory.chunk
        committed = sorted(self.model.contents[arena]) or [0]
        chunk = committed[pick % len(committed)]
        offset = chunk * unit + int(where * (unit - 1))
        last = (offset + size - 1) // unit
        if not self.model.may_release(arena, chunk, last - chunk + 1):
            with _raises(InternalError):
                self.memory.view(arena, offset, size)
            return
        self.memory.view(arena, offset, size)[:] = bytes([value]) * size
        self.model.write(arena, offset, bytes([value]) * size)

    @rule(arena=arenas)
    def everything_reads_as_written(self, arena: Arena) -> None:
        unit = self.memory.chunk
        for index, expected in self.model.contents[arena].items():
            assert self.memory.view(arena, index * unit, unit) == expected
            self.model.touched.add((arena, index))

    @precondition(lambda self: len(self.model.sizes) == 2)  # as often as reserve: rarely
    @rule(arena=consumes(arenas))
    def free(self, arena: Arena) -> None:
        self.memory.free(arena)
        self.model.free(arena)

    @invariant()
    def the_os_counts_what_is_there_and_no_more(self) -> None:
        most = self.model.committed_bytes() + self.model.kept * self.memory.chunk
        assert self.model.touched_bytes() <= self._counted(most) <= most

    def _counted(self, most: int) -> int:
        """Return what the OS counts; an OS that takes what it gets a moment later has it by then."""
        deadline = time.monotonic() + _PATIENCE
        while (counted := self.memory.resident() - self.before) > most and time.monotonic() < deadline:
            time.sleep(0.001)
        return counted

    @invariant()
    def no_chunk_has_two_owners_or_none(self) -> None:
        self.memory.check()
        assert self.memory.bytes_in(PageState.SECURE) == self.model.committed_bytes()
        assert self.memory.unused() == self.model.kept * self.memory.chunk

    def teardown(self) -> None:
        for arena in list(self.model.sizes):
            self.everything_reads_as_written(arena)
            self.memory.free(arena)
        self.memory.return_unused()
        assert self._counted(0) == 0


class OwnershipMachine(RuleBasedStateMachine):
    """Drives an OwnershipTable at random next to four plain sets."""

    TOTAL = 6
    MOVES: ClassVar[dict[PageEvent, tuple[str, str]]] = {  # typed here a second time, on purpose
        PageEvent.GRANT: ("NORMAL", "GRANTED"),
        PageEvent.COMMIT: ("GRANTED", "SECURE"),
        PageEvent.RETURN: ("GRANTED", "NORMAL"),
        PageEvent.RECALL: ("SECURE", "RECALLING"),
        PageEvent.SCRUBBED: ("RECALLING", "NORMAL"),
    }

    def __init__(self) -> None:
        super().__init__()
        self.table = OwnershipTable(self.TOTAL)
        self.owners: dict[str, set[int]] = {
            "NORMAL": set(range(self.TOTAL)),
            "GRANTED": set(),
            "SECURE": set(),
            "RECALLING": set(),
        }

    @rule(event=st.sampled_from(PageEvent), pages=st.lists(st.integers(-1, TOTAL), max_size=TOTAL))
    def apply(self, event: PageEvent, pages: list[int]) -> None:
        source, target = self.MOVES[event]
        legal = len(set(pages)) == len(pages) and set(pages) <= self.owners[source]
        with contextlib.nullcontext() if legal else _raises(IllegalTransitionError):
            self.table.apply(event, pages)
        if legal:
            self.owners[source] -= set(pages)
            self.owners[target] |= set(pages)

    @rule(event=st.sampled_from(PageEvent), chosen=st.sets(st.integers(0, TOTAL - 1), min_size=1))
    def apply_to_pages_in_the_right_state(self, event: PageEvent, chosen: set[int]) -> None:
        self.apply(event, sorted(chosen & self.owners[self.MOVES[event][0]]))

    @invariant()
    def every_chunk_has_the_owner_it_should_have(self) -> None:
        for name, pages in self.owners.items():
            assert self.table.count(PageState[name]) == len(pages)
            assert all(self.table.state(page) is PageState[name] for page in pages)

    @invariant()
    def no_chunk_is_lost(self) -> None:
        self.table.check()
        assert sum(self.table.count(state) for state in PageState) == self.TOTAL


@contextlib.contextmanager
def _raises(kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was expected")
