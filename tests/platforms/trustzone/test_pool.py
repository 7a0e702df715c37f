"""The pool of runs: long runs stay long, and nothing is lost."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from flexserve.platforms.trustzone.pool import Pool, Run, count, cut, merged, pieces, spans
from flexserve.platforms.trustzone.ram import BASE, PAGE


def run(first: int, pages: int) -> Run:
    return Run(BASE + first * PAGE, pages)


def pages_of(*runs: Run) -> list[int]:
    return [(each.ipa - BASE) // PAGE + index for each in runs for index in range(each.pages)]


def pool_of(*runs: Run) -> Pool:
    pool = Pool()
    for each in runs:
        pool.add(each)
    return pool


def test_the_shortest_run_that_suffices_is_cut():
    pool = pool_of(run(0, 512), run(1000, 8), run(2000, 64))
    assert pool.take(8) == [run(1000, 8)]
    assert pool.take(10) == [run(2000, 10)]
    assert pool.pages == 512 + 54


def test_many_pages_come_in_as_few_runs_as_there_are_of_them():
    pool = pool_of(*(run(10 * index, 1) for index in range(20)), run(1000, 512), run(2000, 100))
    assert pool.take(600) == [run(1000, 512), run(2000, 88)]


def test_of_too_few_pages_none_is_given():
    pool = pool_of(run(0, 5))
    assert pool.take(6) == []
    assert pool.pages == 5


def test_pages_are_dropped_out_of_the_middle_of_a_run():
    pool = pool_of(run(0, 10), run(20, 2))
    assert pool.drop(run(3, 4)) == [run(3, 4)]
    assert sorted(pages_of(*pool.take(8))) == [0, 1, 2, 7, 8, 9, 20, 21]


def test_neighbours_are_merged_in_order_only():
    assert list(merged([run(0, 2), run(2, 3), run(9, 1), run(8, 1)])) == [run(0, 5), run(9, 1), run(8, 1)]


runs = st.lists(st.integers(1, 9), max_size=12).map(
    lambda lengths: [run(20 * index, pages) for index, pages in enumerate(lengths)]
)


@given(runs, st.integers(1, 7))
def test_portions_are_of_one_size_and_nothing_is_lost(given_runs: list[Run], size: int):
    portions = list(cut(given_runs, size))
    assert [count(portion) for portion in portions[:-1]] == [size] * (len(portions) - 1)
    assert pages_of(*(each for portion in portions for each in portion)) == pages_of(*given_runs)
    assert pages_of(*pieces(given_runs, size)) == pages_of(*given_runs)
    assert all(piece.pages <= size for piece in pieces(given_runs, size))


@given(runs, st.lists(st.tuples(st.booleans(), st.integers(0, 240), st.integers(1, 12)), max_size=20))
def test_a_pool_holds_what_was_put_in_and_not_taken_out(
    given_runs: list[Run], steps: list[tuple[bool, int, int]]
):
    pool, held = pool_of(*given_runs), set(pages_of(*given_runs))
    for take, first, pages in steps:
        out = pages_of(*(pool.take(pages) if take else pool.drop(run(first, pages))))
        wanted = set(range(first, first + pages))
        assert len(out) == ((pages if pages <= len(held) else 0) if take else len(held & wanted))
        assert set(out) <= (held if take else held & wanted)
        held -= set(out)
        assert pool.pages == len(held)


def mask(indices: Iterable[int], total: int = 2048) -> NDArray[np.bool_]:
    chosen = np.zeros(total, np.bool_)
    chosen[list(indices)] = True
    return chosen


def test_ranges_span_small_runs_and_what_may_lie_between():
    wanted = mask(pages_of(run(300, 8), run(3, 16), run(508, 10), run(600, 1)))
    assert list(spans(BASE, wanted, ~wanted, 512)) == [run(3, 509), run(512, 89)]
    assert list(spans(BASE, wanted, ~wanted & ~mask([400]), 512)) == [run(3, 305), run(508, 4), run(512, 89)]
    assert list(spans(BASE, wanted, mask([]), 512)) == [
        run(3, 16),
        run(300, 8),
        run(508, 4),
        run(512, 6),
        run(600, 1),
    ]
    assert list(spans(BASE, mask([]), ~wanted, 512)) == []


@given(st.sets(st.integers(0, 99)), st.sets(st.integers(0, 99)), st.integers(1, 40), st.integers(0, 99))
def test_ranges_hold_all_that_is_wanted_and_nothing_that_may_not_lie_between(
    wanted: set[int], passable: set[int], most: int, first: int
):
    found = [
        Run(each.ipa - first * PAGE + BASE, each.pages)
        for each in spans(first * PAGE, mask(wanted, 100), mask(passable, 100), most)
    ]
    covered = pages_of(*found)
    assert sorted({*covered}) == covered
    assert wanted <= {*covered} <= wanted | passable
    assert all({pages_of(each)[0], pages_of(each)[-1]} <= wanted for each in found)
    assert all((first + pages_of(each)[0]) // most == (first + pages_of(each)[-1]) // most for each in found)
    for one, next_ in itertools.pairwise(found):
        between = {*range(pages_of(one)[-1] + 1, pages_of(next_)[0])}
        crossed = (first + pages_of(one)[0]) // most != (first + pages_of(next_)[0]) // most
        assert crossed or between - passable, "these two could have been one"
