"""How much a key may ask for: rates, and what is left of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexserve.errors import CallerError
from flexserve.normal.quota import Quota, Rate


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def quota(requests: str | None = None, tokens: str | None = None) -> tuple[Quota, Clock]:
    clock = Clock()
    each, all_together = (None if text is None else Rate.parse(text) for text in (requests, tokens))
    return Quota(each, all_together, clock), clock


def test_a_rate_is_an_amount_in_a_period() -> None:
    assert Rate.parse("60/m") == Rate.parse("60/minute") == Rate(60, "minute")
    assert str(Rate.parse("100000/d")) == "100000/day"
    assert Rate.parse("3600/h").per_second == 1


@pytest.mark.parametrize("text", ["", "60", "0/minute", "-1/m", "60/week", "60 / minute", "1e9/s", "60/min"])
def test_what_is_no_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(CallerError) as refusal:
        Rate.parse(text)
    assert "60/minute" in refusal.value.hint


def test_so_many_requests_come_in_at_once_and_one_more_when_its_share_of_the_time_has_passed() -> None:
    bounded, clock = quota(requests="2/minute")
    assert [bounded.admit(), bounded.admit()] == [0, 0]
    assert bounded.admit() == pytest.approx(30)
    clock.now += 29
    assert bounded.admit() == pytest.approx(1)
    clock.now += 1
    assert bounded.admit() == 0


def test_a_refused_request_costs_nothing() -> None:
    bounded, clock = quota(requests="1/minute")
    bounded.admit()
    waits = [bounded.admit() for _ in range(10)]
    assert waits == [pytest.approx(60)] * 10
    clock.now += 60
    assert bounded.admit() == 0


def test_tokens_are_charged_when_they_are_known_and_a_debt_is_waited_for() -> None:
    bounded, clock = quota(tokens="60/minute")
    assert bounded.admit() == 0
    bounded.charge(150)
    assert bounded.admit() == pytest.approx(91)
    clock.now += 91
    assert bounded.admit() == 0


def test_without_rates_nothing_is_bounded() -> None:
    free, _ = quota()
    free.charge(10**9)
    assert free.admit() == 0


@given(st.lists(st.floats(0, 100), max_size=40))
def test_no_period_lets_in_more_than_twice_its_amount(pauses: list[float]) -> None:
    bounded, clock = quota(requests="5/minute")
    let_in: list[float] = []
    for pause in pauses:
        clock.now += pause
        if bounded.admit() == 0:
            let_in.append(clock.now)
    for start in let_in:
        assert sum(start <= at < start + 60 for at in let_in) <= 10
