"""How many nodes make a slice of a graph."""

from __future__ import annotations

import pytest

from flexserve.policy.slice_length import SliceLength

GRAPH = 1000  # nodes


@pytest.fixture
def slices() -> SliceLength:
    return SliceLength()


def test_the_first_graph_of_one_token_is_one_slice_and_that_of_many_is_cut_small(slices: SliceLength):
    assert slices.nodes(1, GRAPH) == GRAPH
    assert slices.nodes(512, GRAPH) == 16


def test_a_slice_takes_twentieths_of_a_second_by_what_such_graphs_took(slices: SliceLength):
    slices.took(512, 16, 0.016)
    assert slices.nodes(512, GRAPH) == 50
    assert slices.nodes(600, GRAPH) == 50, "a graph of about as many tokens"
    assert slices.nodes(8, GRAPH) == 16, "nothing is known of it"


def test_the_latest_slice_counts_as_much_as_all_before_it(slices: SliceLength):
    slices.took(512, 1, 0.001)
    slices.took(512, 1, 0.003)
    assert slices.nodes(512, GRAPH) == 25


def test_a_slice_has_sixteen_nodes_however_slow_they_are(slices: SliceLength):
    slices.took(512, 1, 100.0)
    assert slices.nodes(512, GRAPH) == 16


def test_nodes_too_fast_for_the_clock_are_one_slice(slices: SliceLength):
    slices.took(1, 4, 0.0)
    assert slices.nodes(1, GRAPH) == GRAPH
