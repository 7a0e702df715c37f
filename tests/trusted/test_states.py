"""The states of chunks: the table's literal content, what it refuses, and random walks through it."""

from __future__ import annotations

import contextlib
import itertools
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from flexserve.errors import Blame, InternalError
from flexserve.trusted.weights.states import TRANSITIONS, ChunkEvent, ChunkState, ChunkTable

PATH_TO = {
    ChunkState.ABSENT: [],
    ChunkState.LOADING: [ChunkEvent.CLAIM],
    ChunkState.RESIDENT: [ChunkEvent.CLAIM, ChunkEvent.LOADED],
    ChunkState.EVICTING: [ChunkEvent.CLAIM, ChunkEvent.LOADED, ChunkEvent.REUSE],
}


def table_with(state: ChunkState, total: int = 3) -> ChunkTable:
    """Return a table whose chunk 0 is in `state` and whose others are ABSENT."""
    table = ChunkTable(total)
    for event in PATH_TO[state]:
        table.move(event, 0)
    return table


def apply_to_one(table: ChunkTable, event: ChunkEvent, chunk: int) -> None:
    table.apply(event, [chunk])


@pytest.mark.parametrize("apply", [ChunkTable.move, apply_to_one])
@pytest.mark.parametrize(("state", "event"), list(itertools.product(ChunkState, ChunkEvent)))
def test_a_transition_happens_exactly_when_the_table_has_it(state, event, apply):
    table = table_with(state)
    if (state, event) in TRANSITIONS:
        apply(table, event, 0)
        assert table.states.tolist() == [TRANSITIONS[state, event], 0, 0]
    else:
        with pytest.raises(InternalError, match=f"chunk 0 is {state.name}"):
            apply(table, event, 0)
        assert table.states.tolist() == [state, 0, 0]
        assert table.epoch == 0
    table.check()


def test_every_event_happens_in_one_state():
    assert len({event for _, event in TRANSITIONS}) == len(TRANSITIONS) == len(ChunkEvent)


def test_a_chunk_that_one_party_claimed_is_claimed_by_no_other():
    for claimed in (ChunkState.LOADING, ChunkState.EVICTING):
        led_to = {new for (old, _), new in TRANSITIONS.items() if old is claimed}
        assert led_to <= {ChunkState.ABSENT, ChunkState.RESIDENT}


def test_nothing_is_resident_that_was_not_loaded():
    assert {event for (_, event), new in TRANSITIONS.items() if new is ChunkState.RESIDENT} == {
        ChunkEvent.LOADED
    }


def test_one_illegal_chunk_stops_the_whole_batch():
    table = table_with(ChunkState.LOADING)
    with pytest.raises(InternalError, match="chunk 0 is LOADING"):
        table.apply(ChunkEvent.CLAIM, [1, 2, 0])
    assert table.states.tolist() == [ChunkState.LOADING, ChunkState.ABSENT, ChunkState.ABSENT]
    assert table.claimed == 1


def test_runs_are_the_states_in_order_and_short() -> None:
    table = ChunkTable(6)
    assert table.runs() == [(0, 6)]
    table.apply(ChunkEvent.CLAIM, [0, 1, 4])
    table.move(ChunkEvent.LOADED, 1)
    assert table.runs() == [(1, 1), (2, 1), (0, 2), (1, 1), (0, 1)]
    assert ChunkTable(0).runs() == []


@pytest.mark.parametrize(
    "chunks", [[1, 1], [3], [-1], [0, 1, 2, 3]], ids=["twice", "past", "negative", "mixed"]
)
def test_a_chunk_named_twice_or_unknown_is_refused_and_nothing_changes(chunks):
    table = ChunkTable(3)
    with pytest.raises(InternalError) as refusal:
        table.apply(ChunkEvent.CLAIM, chunks)
    assert refusal.value.blame is Blame.BUG
    assert table.count(ChunkState.ABSENT) == 3
    assert not table.states.any()


@pytest.mark.parametrize("chunk", [-1, 3])
def test_a_single_chunk_that_does_not_exist_is_refused(chunk):
    with pytest.raises(InternalError):
        ChunkTable(3).move(ChunkEvent.CLAIM, chunk)


def test_an_eviction_begins_a_new_epoch_and_nothing_else_does():
    table = ChunkTable(2)
    table.apply(ChunkEvent.CLAIM, range(2))
    table.apply(ChunkEvent.LOADED, range(2))
    table.move(ChunkEvent.REUSE, 0)
    table.move(ChunkEvent.GONE, 0)
    table.apply(ChunkEvent.EVICT, [])
    assert table.epoch == 0
    table.apply(ChunkEvent.EVICT, [1])
    assert table.epoch == 1
    table.apply(ChunkEvent.GONE, [1])
    assert table.epoch == 1


def test_states_are_changed_by_the_table_only():
    table = ChunkTable(2)
    with pytest.raises(ValueError, match="read-only"):
        table.states[0] = ChunkState.RESIDENT
    with pytest.raises(ValueError, match="WRITEABLE"):
        table.states.flags.writeable = True


def test_check_finds_a_lost_chunk():
    table = ChunkTable(3)
    table._counts[ChunkState.ABSENT] = 2
    with pytest.raises(AssertionError):
        table.check()


class ChunkMachine(RuleBasedStateMachine):
    """Drives a ChunkTable at random next to a plain list of names."""

    TOTAL = 6
    MOVES: ClassVar[dict[ChunkEvent, tuple[str, str]]] = {  # typed here a second time, on purpose
        ChunkEvent.CLAIM: ("ABSENT", "LOADING"),
        ChunkEvent.LOADED: ("LOADING", "RESIDENT"),
        ChunkEvent.ABORT: ("LOADING", "ABSENT"),
        ChunkEvent.EVICT: ("RESIDENT", "EVICTING"),
        ChunkEvent.REUSE: ("RESIDENT", "EVICTING"),
        ChunkEvent.GONE: ("EVICTING", "ABSENT"),
    }

    def __init__(self) -> None:
        super().__init__()
        self.table = ChunkTable(self.TOTAL)
        self.names = ["ABSENT"] * self.TOTAL
        self.evictions = 0

    def expect(self, event: ChunkEvent, chunks: list[int]) -> contextlib.AbstractContextManager[object]:
        """Move the names, or return what expects that the table refuses."""
        source, target = self.MOVES[event]
        legal = all(0 <= chunk < self.TOTAL and self.names[chunk] == source for chunk in chunks)
        if len(set(chunks)) < len(chunks) or not legal:
            return pytest.raises(InternalError)
        for chunk in chunks:
            self.names[chunk] = target
        self.evictions += event is ChunkEvent.EVICT and bool(chunks)
        return contextlib.nullcontext()

    @rule(event=st.sampled_from(ChunkEvent), chunks=st.lists(st.integers(-1, TOTAL), max_size=TOTAL))
    def apply(self, event: ChunkEvent, chunks: list[int]) -> None:
        with self.expect(event, chunks):
            self.table.apply(event, chunks)

    @rule(event=st.sampled_from(ChunkEvent), chosen=st.sets(st.integers(0, TOTAL - 1), min_size=1))
    def apply_to_chunks_in_the_right_state(self, event: ChunkEvent, chosen: set[int]) -> None:
        self.apply(event, [chunk for chunk in chosen if self.names[chunk] == self.MOVES[event][0]])

    @rule(event=st.sampled_from(ChunkEvent), chunk=st.integers(-1, TOTAL))
    def move(self, event: ChunkEvent, chunk: int) -> None:
        with self.expect(event, [chunk]):
            self.table.move(event, chunk)

    @invariant()
    def every_chunk_is_in_the_state_it_should_be_in(self) -> None:
        assert [ChunkState(state).name for state in self.table.states] == self.names

    @invariant()
    def what_is_counted_is_what_is_there(self) -> None:
        self.table.check()
        assert self.table.whole == (set(self.names) == {"RESIDENT"})
        assert self.table.claimed == self.names.count("LOADING") + self.names.count("EVICTING")
        assert self.table.count(ChunkState.RESIDENT) == int(np.sum(self.table.states == 2))
        assert self.table.epoch == self.evictions


TestChunksAtRandom = ChunkMachine.TestCase
