"""Chunks come in from the front of the order in which graphs read them, and go from its end."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flexserve.tee_client.ordered_chunks import OrderedChunks, runs

COUNT = 12


class Order(RuleBasedStateMachine):
    """Any loads and evictions. `order` and `there` are the reference: plain lists and sets."""

    chunks: OrderedChunks
    order: list[int]

    @initialize(order=st.permutations(range(COUNT)), read=st.integers(1, COUNT))
    def begin(self, order: list[int], read: int) -> None:
        self.chunks = OrderedChunks(COUNT)
        self.there = set[int]()
        self.coming = dict[int, bool]()
        self.disorder = 0
        self.learn(order, read)

    def learn(self, order: list[int], read: int) -> None:
        self.order = order[:read] + sorted(order[read:])
        self.chunks.learn(order[:read])

    @property
    def taken(self) -> list[bool]:
        """By the order: whether a chunk is there, or on its way and wanted."""
        return [chunk in self.there or self.coming.get(chunk, False) for chunk in self.order]

    def behind_a_gap(self) -> int:
        """Return how many chunks are taken though one before them is not."""
        first = [*self.taken, False].index(False)
        return sum(self.taken[first:])

    # ---- what follows the order -----------------------------------------------------------------------

    @rule(count=st.none() | st.integers(0, COUNT))
    def claim(self, count: int | None) -> None:
        missing = [chunk for chunk, taken in zip(self.order, self.taken, strict=True) if not taken]
        first = next((chunk for chunk in missing if chunk in self.order[:count]), None)
        expected = None if first in self.coming else first
        assert self.chunks.claim(count) == expected
        if expected is not None:
            self.coming[expected] = True

    @precondition(lambda self: self.coming)
    @rule(data=st.data())
    def come(self, data: st.DataObject) -> None:
        chunk = data.draw(st.sampled_from(sorted(self.coming)))
        wanted = self.coming.pop(chunk)
        assert self.chunks.came(chunk) == wanted
        if wanted:
            self.there.add(chunk)
        elif chunk in self.there:  # as the application was found to say, before it went
            self.there.remove(chunk)
            self.disorder = self.behind_a_gap()

    @rule(count=st.integers(0, COUNT))
    def give_up(self, count: int) -> None:
        gone = {chunk for part in self.chunks.give_up(count) for chunk in part}
        stays = self.order[: COUNT - len(gone)]
        assert gone.isdisjoint(stays)
        assert len(gone & self.there) == min(count, len(self.there))
        if gone and count:
            assert self.order[len(stays)] in self.there or not stays  # no more than was asked for
        self.there -= gone
        self.coming = {chunk: wanted and chunk not in gone for chunk, wanted in self.coming.items()}

    # ---- what makes disorder --------------------------------------------------------------------------

    @precondition(lambda self: self.coming)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        chunk = data.draw(st.sampled_from(sorted(self.coming)))
        self.coming.pop(chunk)
        self.chunks.failed(chunk)
        self.disorder = self.behind_a_gap()

    @rule(there=st.sets(st.integers(0, COUNT - 1)))
    def find(self, there: set[int]) -> None:
        self.there = there
        self.chunks.found([chunk in there for chunk in range(COUNT)])
        self.disorder = self.behind_a_gap()

    @rule(order=st.permutations(range(COUNT)), read=st.integers(1, COUNT))
    def learn_another(self, order: list[int], read: int) -> None:
        self.learn(order, read)
        self.disorder = self.behind_a_gap()

    # ---- the laws -------------------------------------------------------------------------------------

    @invariant()
    def what_is_there_is_known(self) -> None:
        assert self.chunks.resident == len(self.there)
        states = [there for there, count in self.chunks.states() for _ in range(count)]
        assert states == [chunk in self.there for chunk in range(COUNT)]

    @invariant()
    def loads_and_evictions_leave_no_gap_and_close_those_that_there_are(self) -> None:
        now = self.behind_a_gap()
        assert now <= self.disorder
        self.disorder = now
        if not now and not self.coming:
            assert self.there == set(self.order[: len(self.there)])


TestOrder = Order.TestCase


def test_before_it_is_known_the_order_is_that_of_numbers() -> None:
    chunks = OrderedChunks(3)
    assert not chunks.known
    assert [chunks.claim() for _ in range(4)] == [0, 1, 2, None]


@pytest.mark.parametrize("read", [[3], [-1], [0, 1 << 31]])
def test_an_order_of_other_chunks_changes_nothing(read: list[int]) -> None:
    chunks = OrderedChunks(3)
    with pytest.raises(ValueError, match="no chunks"):
        chunks.learn(read)
    assert not chunks.known
    assert chunks.claim() == 0


def test_chunks_that_the_first_graph_does_not_read_come_last() -> None:
    chunks = OrderedChunks(4)
    chunks.learn([2, 2, 0])
    assert [chunks.claim() for _ in range(4)] == [2, 0, 1, 3]


def test_numbers_are_told_as_runs() -> None:
    assert runs([5, 1, 2, 3, 7, 6]) == [range(1, 4), range(5, 8)]
    assert runs([]) == []
