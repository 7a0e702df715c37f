"""Flex-Mem: memory is granted, used and given back chunk by chunk, and none is ever lost."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from flexserve.errors import GrantRefusedError, InternalError
from flexserve.platforms.ports import Arena
from flexserve.simulator.secure_memory import SimSecureMemory
from flexserve.trusted.heartbeat import Heartbeat
from flexserve.trusted.memory.flexmem import FlexMem, OpenHanded
from flexserve.trusted.memory.ownership import PageState

CHUNK = 4096
TOTAL = 12  # chunks of the simulated machine
ARENA = 6  # chunks


class Purse:
    """A normal world that grants up to `limit` chunks at any one time and remembers all it is told."""

    def __init__(self, limit: int = TOTAL) -> None:
        self.limit = limit
        self.out = 0  # chunks granted and not returned
        self.asked: list[tuple[int, int]] = []  # chunks: (size, minimum)

    def request(self, size: int, minimum: int) -> int:
        self.asked.append((size // CHUNK, minimum // CHUNK))
        granted = min(size // CHUNK, max(0, self.limit - self.out))
        self.out += granted
        return granted * CHUNK

    def returned(self, size: int) -> None:
        self.out -= size // CHUNK


class Memory(SimSecureMemory):
    """Simulated memory whose OS may refuse."""

    refuses = False

    def commit(self, arena: Arena, offset: int, length: int) -> None:
        if self.refuses:
            raise GrantRefusedError("The OS refused memory (injected).", hint="Expect this in a test.")
        super().commit(arena, offset, length)


class Bench:
    """A Flex-Mem over simulated memory, with one arena."""

    def __init__(self, limit: int = TOTAL, capacity: int = TOTAL, machine: int = TOTAL) -> None:
        self.memory = Memory(machine * CHUNK, CHUNK)
        self.purse = Purse(limit)
        self.heartbeat = Heartbeat()
        self.flexmem = FlexMem(self.memory, capacity * CHUNK, self.purse, self.heartbeat)
        self.arena = self.flexmem.reserve(ARENA * CHUNK)

    def counts(self, ready: int = 0) -> tuple[int, int]:
        """Return chunks (granted and unused, in use), once all accounts were seen to agree.

        `ready`: chunks of the unused ones that the OS counts as ours.
        """
        self.flexmem.check()
        granted, secure, recalling = (
            self.flexmem.bytes_in(state) // CHUNK
            for state in (PageState.GRANTED, PageState.SECURE, PageState.RECALLING)
        )
        assert recalling == 0
        assert self.flexmem.resident() == (secure + ready) * CHUNK
        return granted, secure

    def commit(self, first: int, count: int) -> None:
        self.flexmem.commit(self.arena, first * CHUNK, count * CHUNK)

    def release(self, first: int, count: int) -> int:
        """Release and report, as every caller does; return the chunks."""
        size = self.flexmem.release(self.arena, first * CHUNK, count * CHUNK)
        self.flexmem.report_returned(size)
        return size // CHUNK


def test_a_commit_takes_grants_and_asks_only_for_what_is_lacking():
    bench = Bench()
    assert bench.flexmem.grant(2 * CHUNK) == 2 * CHUNK
    assert bench.counts() == (2, 0)
    bench.commit(0, 3)
    assert bench.purse.asked == [(2, 0), (1, 1)]
    assert bench.counts() == (0, 3)
    assert bytes(bench.flexmem.view(bench.arena, 0, 3 * CHUNK)) == bytes(3 * CHUNK)


def test_a_commit_that_the_os_refuses_changes_nothing():
    bench = Bench(limit=2)
    bench.commit(0, 1)
    with pytest.raises(GrantRefusedError):
        bench.commit(1, 2)
    granted, secure = bench.counts()
    assert secure == 1
    assert granted + secure == bench.purse.out
    assert bench.flexmem.committed(bench.arena) == CHUNK


def test_a_commit_that_the_platform_refuses_gives_its_grants_back():
    bench = Bench(machine=2)
    with pytest.raises(GrantRefusedError):
        bench.commit(0, 3)
    assert bench.counts() == (0, 0)
    assert bench.purse.out == 0
    bench.commit(0, 2)
    assert bench.counts() == (0, 2)


def test_a_commit_out_of_what_is_granted_never_asks():
    bench = Bench()
    assert not bench.flexmem.try_commit(bench.arena, 0, CHUNK)
    assert bench.purse.asked == []
    assert bench.counts() == (0, 0)


def test_released_memory_is_reported_by_the_caller_and_reads_as_zeros_when_it_comes_back():
    bench = Bench()
    bench.commit(0, 4)
    bench.flexmem.view(bench.arena, CHUNK, 8)[:] = b"a secret"
    assert bench.release(1, 2) == 2
    assert bench.counts() == (0, 2)
    assert bench.purse.out == 2
    bench.commit(1, 2)
    assert bytes(bench.flexmem.view(bench.arena, CHUNK, 8)) == bytes(8)


def test_a_release_of_what_is_not_committed_is_refused_and_changes_nothing():
    bench = Bench()
    bench.commit(0, 2)
    with pytest.raises(InternalError):
        bench.release(1, 2)
    assert bench.counts() == (0, 2)


def test_recycling_keeps_the_grant_for_another_place():
    bench = Bench(limit=1)
    bench.commit(0, 1)
    bench.flexmem.view(bench.arena, 0, 8)[:] = b"a secret"
    assert bench.flexmem.recycle(bench.arena, 0, CHUNK) == CHUNK
    assert bench.counts(ready=1) == (1, 0)
    assert bench.flexmem.try_commit(bench.arena, 5 * CHUNK, CHUNK)
    assert bytes(bench.flexmem.view(bench.arena, 5 * CHUNK, 8)) == bytes(8)
    assert bench.purse.out == 1
    assert len(bench.purse.asked) == 1


def test_a_commit_that_is_refused_says_how_much_is_missing():
    bench = Bench(limit=3)
    bench.commit(0, 2)
    with pytest.raises(GrantRefusedError) as refused:
        bench.commit(2, 3)
    assert refused.value.missing == 2 * CHUNK
    assert bench.counts() == (1, 2), "what was granted of it stays, for the next attempt"
    bench.flexmem.recycle(bench.arena, 0, 2 * CHUNK)
    bench.commit(2, 3)
    assert bench.counts() == (0, 3)


def test_what_is_recycled_lies_ready_and_is_the_first_that_is_used():
    bench = Bench(machine=3)
    bench.commit(0, 3)
    bench.flexmem.recycle(bench.arena, 0, 2 * CHUNK)
    assert bench.counts(ready=2) == (2, 1)
    bench.commit(4, 1)
    assert bench.counts(ready=1) == (1, 2), "the machine has no chunk but this one"


@pytest.mark.parametrize("how", ["return_unused", "report", "refused"])
def test_no_more_lies_ready_than_is_granted_and_not_in_use(how: str):
    bench = Bench()
    bench.commit(0, 4)
    bench.flexmem.recycle(bench.arena, 0, 3 * CHUNK)
    if how == "return_unused":
        bench.flexmem.report_returned(bench.flexmem.return_unused())
        assert bench.counts() == (0, 1)
    elif how == "report":
        bench.release(3, 1)
        assert bench.counts(ready=3) == (3, 0)
    else:
        bench.memory.refuses = True
        with pytest.raises(GrantRefusedError):
            bench.commit(0, 2)
        assert bench.counts(ready=1) == (1, 1)


def test_every_commit_is_a_sign_of_life():
    bench = Bench()
    before = bench.heartbeat.last
    bench.commit(0, 1)
    assert bench.heartbeat.last > before


def test_recycling_all_of_an_arena_keeps_every_grant():
    bench = Bench()
    bench.commit(0, 1)
    bench.commit(3, 2)
    assert bench.flexmem.recycle_all(bench.arena) == 3 * CHUNK
    assert bench.counts(ready=3) == (3, 0)
    assert bench.flexmem.recycle_all(bench.arena) == 0


def test_unused_grants_go_back_all_at_once_and_what_is_in_use_stays():
    bench = Bench()
    bench.commit(0, 2)
    bench.flexmem.grant(5 * CHUNK)
    assert bench.flexmem.return_unused() == 5 * CHUNK
    assert bench.counts() == (0, 2)
    assert bench.flexmem.return_unused() == 0


def test_a_partial_grant_is_kept_and_said():
    bench = Bench(limit=3)
    assert bench.flexmem.grant(5 * CHUNK, minimum=2 * CHUNK) == 3 * CHUNK
    assert bench.purse.asked == [(5, 2)]
    assert bench.counts() == (3, 0)


def test_what_is_granted_already_counts_towards_the_minimum():
    bench = Bench()
    bench.flexmem.grant(CHUNK)
    bench.flexmem.grant(4 * CHUNK, minimum=3 * CHUNK)
    assert bench.purse.asked[-1] == (3, 2)


def test_no_more_is_asked_for_than_the_machine_has():
    bench = Bench(capacity=4, limit=100)
    assert bench.flexmem.grant(9 * CHUNK) == 4 * CHUNK
    assert bench.purse.asked == [(4, 0)]
    assert bench.flexmem.grant(9 * CHUNK) == 4 * CHUNK, "there is nothing left to ask for"
    assert len(bench.purse.asked) == 1
    with pytest.raises(GrantRefusedError):
        bench.commit(0, 5)
    assert bench.counts() == (4, 0)


class Lavish(Purse):
    """A normal world that hands out more than it was asked for, and odd bytes on top."""

    def request(self, size: int, minimum: int) -> int:
        self.sent = size + 3 * CHUNK + 77
        self.back = 0
        return self.sent

    def returned(self, size: int) -> None:
        self.back += size


def test_what_is_granted_beyond_the_question_goes_straight_back():
    lavish = Lavish()
    flexmem = FlexMem(SimSecureMemory(TOTAL * CHUNK, CHUNK), TOTAL * CHUNK, lavish)
    assert flexmem.grant(2 * CHUNK) == 2 * CHUNK
    assert lavish.sent - lavish.back == 2 * CHUNK
    flexmem.check()


def test_missing_chunks_are_committed_around_those_that_are_there():
    bench = Bench()
    bench.commit(1, 1)
    bench.commit(4, 1)
    bench.flexmem.view(bench.arena, CHUNK, 4)[:] = b"kept"
    assert bench.flexmem.commit_missing(bench.arena) == 4 * CHUNK
    assert bench.counts() == (0, ARENA)
    assert bytes(bench.flexmem.view(bench.arena, CHUNK, 4)) == b"kept"
    assert bench.flexmem.commit_missing(bench.arena) == 0
    assert bench.purse.asked == [(1, 1), (1, 1), (4, 4)], "in pieces, but asked for at once"


def test_what_lacks_in_an_arena_is_refused_whole_and_said():
    bench = Bench(limit=3)
    bench.commit(1, 1)
    bench.commit(4, 1)
    with pytest.raises(GrantRefusedError) as refused:
        bench.flexmem.commit_missing(bench.arena)
    assert refused.value.missing == 3 * CHUNK
    assert bench.counts() == (1, 2)


class Watched(SimSecureMemory):
    """Calls `meanwhile` in the middle of each commit and release; remembers what was released, in chunks."""

    def __init__(self, total: int, chunk: int) -> None:
        super().__init__(total, chunk)
        self.meanwhile: Callable[[], None] = lambda: None
        self.released: list[tuple[int, int]] = []

    def commit(self, arena: Arena, offset: int, length: int) -> None:
        self.meanwhile()
        super().commit(arena, offset, length)

    def release(self, arena: Arena, offset: int, length: int, *, keep: bool = False) -> None:
        self.meanwhile()
        self.released.append((offset // CHUNK, length // CHUNK))
        super().release(arena, offset, length, keep=keep)


@pytest.fixture
def watched() -> Watched:
    return Watched(TOTAL * CHUNK, CHUNK)


@pytest.mark.parametrize("under_way", ["commit", "release", "recycle"])
def test_a_chunk_in_one_threads_hands_is_refused_to_every_other(watched: Watched, under_way: str):
    flexmem = FlexMem(watched, TOTAL * CHUNK, OpenHanded())
    arena = flexmem.reserve(ARENA * CHUNK)
    flexmem.grant(2 * CHUNK)
    if under_way != "commit":
        flexmem.commit(arena, 0, CHUNK)
    refused: list[str] = []

    def meanwhile() -> None:
        watched.meanwhile = lambda: None
        for name in ("commit", "try_commit", "release", "recycle", "view"):
            with pytest.raises(InternalError):
                getattr(flexmem, name)(arena, 0, CHUNK)
            refused.append(name)
        with pytest.raises(InternalError, match="another thread"):
            flexmem.free(arena)
        assert not flexmem.holds(arena, 0)
        flexmem.check()

    watched.meanwhile = meanwhile
    getattr(flexmem, under_way)(arena, 0, CHUNK)
    assert len(refused) == 5
    assert flexmem.holds(arena, 0) == (under_way == "commit")
    flexmem.free(arena)
    flexmem.check()


def test_memory_that_a_commit_is_about_to_take_is_kept_ready_and_given_to_no_other(watched: Watched):
    flexmem = FlexMem(watched, TOTAL * CHUNK, OpenHanded())
    arena = flexmem.reserve(ARENA * CHUNK)
    flexmem.commit(arena, 0, 3 * CHUNK)
    flexmem.recycle(arena, 0, 2 * CHUNK)
    seen: list[tuple[int, int]] = []

    def meanwhile() -> None:
        flexmem.settle()
        seen.append((flexmem.unused() // CHUNK, flexmem.resident() // CHUNK))

    watched.meanwhile = meanwhile
    flexmem.commit(arena, 0, CHUNK)
    assert seen == [(1, 3)]


def test_a_range_whose_release_fails_is_nobodys_any_more(watched: Watched):
    flexmem = FlexMem(watched, TOTAL * CHUNK, OpenHanded())
    arena = flexmem.reserve(ARENA * CHUNK)
    flexmem.commit(arena, 0, 2 * CHUNK)

    def meanwhile() -> None:
        raise OSError("the kernel would not")

    watched.meanwhile = meanwhile
    with pytest.raises(OSError, match="would not"):
        flexmem.release(arena, 0, CHUNK)
    watched.meanwhile = lambda: None
    for call in (flexmem.commit, flexmem.release, flexmem.recycle, flexmem.view):
        with pytest.raises(InternalError):
            call(arena, 0, CHUNK)
    assert flexmem.committed(arena) == CHUNK
    assert flexmem.bytes_in(PageState.RECALLING) == CHUNK
    flexmem.check()


def test_equal_looking_arenas_are_not_the_same():
    bench = Bench()
    with pytest.raises(InternalError):
        bench.flexmem.commit(Arena(base=bench.arena.base, size=bench.arena.size), 0, CHUNK)


def test_what_lies_side_by_side_is_released_in_one_call(watched: Watched):
    flexmem = FlexMem(watched, TOTAL * CHUNK, OpenHanded())
    arena = flexmem.reserve(ARENA * CHUNK)
    for chunk in (3, 0, 1):
        flexmem.commit(arena, chunk * CHUNK, CHUNK)
    flexmem.release_all(arena)
    assert watched.released == [(0, 2), (3, 1)]


def test_freeing_an_arena_returns_all_it_held():
    bench = Bench()
    bench.commit(0, 1)
    bench.commit(3, 2)
    assert bench.flexmem.free(bench.arena) == 3 * CHUNK
    assert bench.counts() == (0, 0)


def test_threads_that_commit_and_release_at_once_lose_no_chunk():
    memory = SimSecureMemory(64 * CHUNK, CHUNK)
    flexmem = FlexMem(memory, 64 * CHUNK, OpenHanded())
    failures: list[BaseException] = []

    def churn(arena: Arena) -> None:
        try:
            for turn in range(60):
                flexmem.commit(arena, 0, arena.size)
                flexmem.recycle(arena, (turn % ARENA) * CHUNK, CHUNK)
                flexmem.release_all(arena)
        except BaseException as error:
            failures.append(error)

    arenas = [flexmem.reserve(ARENA * CHUNK) for _ in range(4)]
    threads = [threading.Thread(target=churn, args=(arena,)) for arena in arenas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    flexmem.return_unused()
    flexmem.check()
    assert flexmem.bytes_in(PageState.NORMAL) == 64 * CHUNK


chunks = st.integers(0, ARENA - 1)


class FlexMemMachine(RuleBasedStateMachine):
    """Drives a Flex-Mem at random next to a set of committed chunks and a count of grants."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.committed: set[int] = set()
        self.granted = 0
        self.ready = 0  # of those granted

    @rule(limit=st.integers(0, TOTAL))
    def the_os_has_more_or_less_to_give(self, limit: int) -> None:
        self.bench.purse.limit = limit

    @rule(count=st.integers(0, TOTAL + 2))
    def grant(self, count: int) -> None:
        lacking = min(max(0, count - self.granted), TOTAL - self.granted - len(self.committed))
        room = max(0, self.bench.purse.limit - self.bench.purse.out)
        self.granted += min(lacking, room)
        assert self.bench.flexmem.grant(count * CHUNK) == self.granted * CHUNK

    @rule(chunk=chunks)
    def commit(self, chunk: int) -> None:
        if chunk in self.committed:
            with pytest.raises(InternalError):
                self.bench.commit(chunk, 1)
            return
        purse = self.bench.purse
        if self.granted or purse.limit > purse.out:
            self.bench.commit(chunk, 1)
            self.committed.add(chunk)
            self.granted, self.ready = max(0, self.granted - 1), max(0, self.ready - 1)
        else:
            with pytest.raises(GrantRefusedError):
                self.bench.commit(chunk, 1)

    @rule()
    def commit_missing(self) -> None:
        if self.granted >= ARENA - len(self.committed):
            self.granted -= ARENA - len(self.committed)
            self.ready = max(0, self.ready - ARENA + len(self.committed))
            self.bench.flexmem.commit_missing(self.bench.arena)
            self.committed = set(range(ARENA))

    @rule(chunk=chunks)
    def release(self, chunk: int) -> None:
        if chunk in self.committed:
            self.bench.release(chunk, 1)
            self.committed.remove(chunk)
        else:
            with pytest.raises(InternalError):
                self.bench.release(chunk, 1)

    @rule(chunk=chunks)
    def recycle(self, chunk: int) -> None:
        if chunk in self.committed:
            self.bench.flexmem.recycle(self.bench.arena, chunk * CHUNK, CHUNK)
            self.committed.remove(chunk)
            self.granted += 1
            self.ready += 1

    @rule()
    def recycle_all(self) -> None:
        assert self.bench.flexmem.recycle_all(self.bench.arena) == len(self.committed) * CHUNK
        self.granted += len(self.committed)
        self.ready += len(self.committed)
        self.committed = set()

    @rule()
    def return_unused(self) -> None:
        size = self.bench.flexmem.return_unused()
        assert size == self.granted * CHUNK
        self.bench.flexmem.report_returned(size)
        self.granted = self.ready = 0

    @invariant()
    def all_accounts_agree(self) -> None:
        assert self.bench.counts(self.ready) == (self.granted, len(self.committed))
        assert self.bench.purse.out == self.granted + len(self.committed)
        assert self.bench.flexmem.committed(self.bench.arena) == len(self.committed) * CHUNK


TestFlexMemAtRandom = FlexMemMachine.TestCase
TestFlexMemAtRandom.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
