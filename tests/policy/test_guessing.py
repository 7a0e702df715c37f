"""How many tokens are guessed: as many as pay, by what was measured."""

from __future__ import annotations

import itertools

import pytest

from flexserve.policy.guessing import MOST, Guessing


def measured(right: float, guess: float, more: float, *, rounds: int = 60) -> Guessing:
    """Return a policy that has seen guesses of which the part `right` is right; a plain graph takes 1 s."""
    policy, owed = Guessing(), 0.0
    for _ in range(rounds):
        count = policy.count()
        if not count:
            policy.computed(1.0)
            continue
        good = 0
        while good < count:
            owed += right
            if owed < 1:
                break
            owed, good = owed - 1, good + 1
        policy.checked(count, good, guess * count, 1.0 + more * count)
    return policy


def test_nothing_is_guessed_before_two_plain_graphs_were_measured() -> None:
    policy = Guessing()
    for _ in range(2):
        assert policy.count() == 0
        policy.computed(1.0)
    assert policy.count() > 0


def test_the_more_guesses_are_right_the_more_are_made() -> None:
    few, many = measured(0.6, 0.1, 0.02), measured(1.0, 0.1, 0.02)
    assert 0 < few.count() < many.count() == MOST


@pytest.mark.parametrize(("right", "guess", "more"), [(0.0, 0.1, 0.0), (0.5, 0.6, 0.1), (1.0, 0.5, 0.6)])
def test_guesses_that_do_not_pay_are_only_tried_now_and_then(right: float, guess: float, more: float) -> None:
    policy = measured(right, guess, more)
    made = 0
    for _ in range(130):
        count = policy.count()
        made += bool(count)
        if count:
            policy.checked(count, round(right * count), guess * count, 1.0 + more * count)
        else:
            policy.computed(1.0)
    assert 1 <= made <= 2


def trials(policy: Guessing, graphs: int, *, right: bool = False) -> list[int]:
    """Return at which of so many graphs something is guessed that costs as much as it brings, or is wrong."""
    made = []
    for graph in range(graphs):
        if count := policy.count():
            made.append(graph)
            policy.checked(count, count if right else 0, 0.1 * count, 1.0)
        else:
            policy.computed(1.0)
    return made


def test_the_longer_guesses_do_not_pay_the_rarer_they_are_tried() -> None:
    made = trials(measured(0.0, 0.1, 0.0), 20_000)
    pauses = [after - before - 1 for before, after in itertools.pairwise(made)]
    assert all(after == min(2 * before, 4096) for before, after in itertools.pairwise(pauses))
    assert pauses[0] < pauses[-1] == 4096


def test_what_paid_once_is_tried_again_soon() -> None:
    policy = measured(0.0, 0.1, 0.0)
    trials(policy, 3000)
    trials(policy, 3000, right=True)
    assert policy.count() > 0
    made = trials(policy, 2000)
    stopped = next(graph for graph, after in itertools.pairwise(made) if after > graph + 1)
    assert 64 <= next(graph for graph in made if graph > stopped) - stopped <= 2 * 64 + 1


def test_a_draft_that_became_good_is_found_out() -> None:
    policy = measured(0.0, 0.1, 0.0)
    for _ in range(300):
        if count := policy.count():
            policy.checked(count, count, 0.1 * count, 1.0)
        else:
            policy.computed(1.0)
    assert policy.count() >= 3


def test_after_memory_was_refused_nothing_is_guessed_for_a_while() -> None:
    policy = measured(1.0, 0.1, 0.0)
    policy.refused()
    for _ in range(64):
        assert policy.count() == 0
        policy.computed(1.0)
    assert policy.count() > 0


def test_three_trials_that_brought_nothing_are_followed_by_sixty_four_graphs_without_one() -> None:
    policy = Guessing()
    policy.computed(1.0)
    policy.computed(1.0)
    for _ in range(3):
        assert policy.count() == 3
        policy.checked(3, 0, 3.0, 1.0)
    for _ in range(64):
        assert policy.count() == 0
        policy.computed(1.0)
    assert policy.count() == 3


def test_one_guess_is_made_where_a_second_would_not_pay() -> None:
    assert measured(0.3, 0.1, 0.0).count() == 1


@pytest.mark.parametrize("second", [0.01, 1.0, 100.0])
def test_what_pays_does_not_depend_on_how_fast_the_machine_is(second: float) -> None:
    for right, guess, pays in ((3, 0.1, True), (3, 0.6, True), (0, 1.0, False)):
        policy = Guessing()
        for _ in range(2):
            policy.computed(second)
        for _ in range(3):
            policy.checked(3, right, 3 * guess * second, second)
        assert bool(policy.count()) == pays


def test_dear_guesses_pay_where_nearly_all_are_right() -> None:
    assert measured(0.9, 0.6, 0.0).count() > 0


def test_a_guess_that_was_disturbed_once_counts_by_and_by() -> None:
    policy = measured(1.0, 0.1, 0.0)
    policy.checked(8, 8, 8 * 1.0, 1.0)
    assert policy.count() == MOST


def test_a_first_guess_that_was_slow_is_forgotten_with_the_first_fast_one() -> None:
    policy = Guessing()
    for _ in range(2):
        policy.computed(1.0)
    for seconds in (10.0, 0.1, 0.1):
        policy.checked(3, 3, 3 * seconds, 1.0)
    assert policy.count() == MOST
