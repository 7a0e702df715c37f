"""Any history of Flex-Mem, beside a set of chunks and a count."""

from __future__ import annotations

import pytest
from flexmem_bench import ARENA, CHUNK, TOTAL, Bench
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from flexserve.errors import GrantRefusedError, InternalError

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
