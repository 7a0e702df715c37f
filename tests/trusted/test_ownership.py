"""The ownership table: its literal content, what it refuses, and random walks through it."""

import itertools

import pytest

from flexserve.errors import Blame, IllegalTransitionError
from flexserve.testing.stateful import OwnershipMachine
from flexserve.trusted.memory.ownership import TRANSITIONS, OwnershipTable, PageEvent, PageState

TestOwnershipAtRandom = OwnershipMachine.TestCase

PATH_TO = {
    PageState.NORMAL: [],
    PageState.GRANTED: [PageEvent.GRANT],
    PageState.SECURE: [PageEvent.GRANT, PageEvent.COMMIT],
    PageState.RECALLING: [PageEvent.GRANT, PageEvent.COMMIT, PageEvent.RECALL],
}


def table_with(state: PageState, total: int = 3) -> OwnershipTable:
    """A table whose chunk 0 is in `state` and whose others are NORMAL."""
    table = OwnershipTable(total)
    for event in PATH_TO[state]:
        table.apply(event, [0])
    return table


@pytest.mark.parametrize(("state", "event"), list(itertools.product(PageState, PageEvent)))
def test_a_transition_happens_exactly_when_the_table_has_it(state, event):
    table = table_with(state)
    if (state, event) in TRANSITIONS:
        table.apply(event, [0])
        assert table.state(0) is TRANSITIONS[state, event]
    else:
        with pytest.raises(IllegalTransitionError):
            table.apply(event, [0])
        assert table.state(0) is state
    table.check()


def test_secure_memory_reaches_the_os_only_through_recalling():
    into_normal = {old for (old, _), new in TRANSITIONS.items() if new is PageState.NORMAL}
    assert into_normal == {PageState.GRANTED, PageState.RECALLING}
    out_of_secure = {new for (old, _), new in TRANSITIONS.items() if old is PageState.SECURE}
    assert out_of_secure == {PageState.RECALLING}


def test_every_state_leads_back_to_normal():
    reachable = {PageState.NORMAL}
    for _ in PageState:
        reachable |= {old for (old, _), new in TRANSITIONS.items() if new in reachable}
    assert reachable == set(PageState)


def test_one_illegal_page_stops_the_whole_batch():
    table = table_with(PageState.GRANTED)
    with pytest.raises(IllegalTransitionError, match="chunk 0 is GRANTED"):
        table.apply(PageEvent.GRANT, [1, 2, 0])
    assert [table.state(page) for page in range(3)] == [PageState.GRANTED, PageState.NORMAL, PageState.NORMAL]
    assert table.count(PageState.NORMAL) == 2


@pytest.mark.parametrize(
    "pages", [[1, 1], [3], [-1], [0, 1, 2, 3]], ids=["twice", "past", "negative", "mixed"]
)
def test_a_chunk_named_twice_or_unknown_is_refused_and_nothing_changes(pages):
    table = OwnershipTable(3)
    with pytest.raises(IllegalTransitionError) as refusal:
        table.apply(PageEvent.GRANT, pages)
    assert refusal.value.blame is Blame.MONITOR
    assert table.count(PageState.NORMAL) == 3


def test_an_empty_batch_changes_nothing():
    table = OwnershipTable(1)
    table.apply(PageEvent.SCRUBBED, [])
    assert table.state(0) is PageState.NORMAL


@pytest.mark.parametrize("page", [-1, 3])
def test_asking_for_a_chunk_that_does_not_exist_raises(page):
    with pytest.raises(IndexError):
        OwnershipTable(3).state(page)


@pytest.mark.parametrize("total", [0, -1])
def test_a_table_without_chunks_is_refused(total):
    with pytest.raises(ValueError, match="at least one"):
        OwnershipTable(total)


def test_check_finds_a_lost_chunk():
    table = OwnershipTable(3)
    table._counts[PageState.NORMAL] = 2
    with pytest.raises(AssertionError):
        table.check()


def test_an_event_has_one_row() -> None:
    assert len({event for _, event in TRANSITIONS}) == len(TRANSITIONS) == len(PageEvent)
