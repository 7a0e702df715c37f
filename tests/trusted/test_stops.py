"""Stop strings: the same cut wherever the text happens to be split, and nothing let out too early."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexserve.trusted.text.stops import StopScanner

# Few letters, so that stops begin inside each other and inside the text all the time.
TEXT = st.text("abc", max_size=24)
STOPS = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4)


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """The reference: read letter by letter; the first stop that is complete ends the text before it."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


def split(text: str, places: list[int]) -> list[str]:
    cuts = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(cuts)]


@given(text=TEXT, stops=STOPS, places=st.lists(st.integers(0, 100), max_size=10))
def test_any_way_of_splitting_a_text_shows_the_text_before_the_first_stop(text, stops, places):
    scanner = StopScanner(stops)
    shown = "".join(scanner.feed(piece) for piece in split(text, places))
    expected, stopped = cut(text, stops)
    assert scanner.stopped is stopped
    assert shown + scanner.finish() == expected


@given(text=TEXT, stops=STOPS, rest=TEXT)
def test_nothing_is_shown_that_a_later_piece_makes_part_of_a_stop(text, stops, rest):
    scanner = StopScanner(stops)
    shown = scanner.feed(text)
    expected, _ = cut(text + rest, stops)
    assert expected.startswith(shown)


@given(text=TEXT, stops=STOPS)
def test_only_the_beginning_of_a_stop_is_ever_held_back(text, stops):
    scanner = StopScanner(stops)
    shown = "".join(scanner.feed(letter) for letter in text)
    if not scanner.stopped:
        held = text[len(shown) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_of_two_stops_the_one_that_is_complete_first_counts_however_the_text_arrives():
    whole, letters = StopScanner(["xaby", "ab"]), StopScanner(["xaby", "ab"])
    assert whole.feed("xaby") == "".join(letters.feed(letter) for letter in "xaby") == "x"


def test_after_a_stop_nothing_more_is_shown():
    scanner = StopScanner(["END"])
    assert scanner.feed("one END two") == "one "
    assert scanner.feed("three") == ""
    assert scanner.finish() == ""


def test_a_beginning_that_comes_to_nothing_is_shown_after_all():
    scanner = StopScanner(["END"])
    assert scanner.feed("the E") == "the "
    assert scanner.feed("N") == ""
    assert scanner.feed("ough") == "ENough"


@pytest.mark.parametrize("stops", [[], [""]])
def test_without_a_stop_string_text_passes_at_once(stops):
    assert StopScanner(stops).feed("anything") == "anything"


def test_the_stop_that_ended_a_text_is_known_by_its_place():
    scanner = StopScanner(["x", "ab", "b"])
    assert scanner.found is None
    scanner.feed("za")
    scanner.feed("b")
    assert scanner.found == 1
