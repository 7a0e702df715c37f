"""Flex-Mem: memory is granted, used and given back chunk by chunk, and none is ever lost."""

from __future__ import annotations

import pytest
from flexmem_bench import ARENA, CHUNK, TOTAL, Bench, Purse

from flexserve.errors import GrantRefusedError, InternalError
from flexserve.platforms.ports import Arena
from flexserve.simulator.secure_memory import SimSecureMemory
from flexserve.trusted.memory.flexmem import FlexMem


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

    def returned(self, size: int, reason: str = "") -> None:
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


def test_equal_looking_arenas_are_not_the_same():
    bench = Bench()
    with pytest.raises(InternalError):
        bench.flexmem.commit(Arena(base=bench.arena.base, size=bench.arena.size), 0, CHUNK)


def test_freeing_an_arena_returns_all_it_held():
    bench = Bench()
    bench.commit(0, 1)
    bench.commit(3, 2)
    assert bench.flexmem.free(bench.arena) == 3 * CHUNK
    assert bench.counts() == (0, 0)
