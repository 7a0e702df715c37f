"""The pressure policy: grants, recalls, and that the two never chase each other."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexserve.platforms.ports import MemorySample
from flexserve.policy.pressure import MAX_RESERVATIONS, Bound, Holdings, Limits, PressurePolicy
from flexserve.units import GIB, MIB

LIMITS = Limits(low=1000, high=1500, emergency=250)
NOTHING = Holdings(granted=0, used=0)


def sample(available: int, stall: float | None = None) -> MemorySample:
    return MemorySample(total=100_000, available=available, stall=stall)


def test_defaults_follow_the_size_of_the_machine() -> None:
    assert Limits.for_machine(64 * GIB).low == 64 * GIB // 20
    small = Limits.for_machine(2 * GIB)
    assert (small.low, small.high, small.emergency) == (512 * MIB, 768 * MIB, 128 * MIB)


def test_memory_is_looked_at_the_sooner_the_less_others_may_still_take() -> None:
    policy = PressurePolicy(Limits(low=GIB, high=2 * GIB, emergency=0))
    periods = [policy.period(sample(GIB + size), NOTHING, now=0) for size in (0, 2 * GIB, 20 * GIB)]
    assert periods == [0.25, 1.0, 2.0]


def test_lines_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="order"):
        Limits(low=10, high=10, emergency=0)


def test_a_grant_that_leaves_enough_free_is_given_whole() -> None:
    decision = PressurePolicy(LIMITS).grant(sample(5000), NOTHING, size=4000, minimum=10, now=0)
    assert decision.size == 4000


def test_a_grant_stops_at_the_low_line_in_whole_chunks() -> None:
    policy = PressurePolicy(LIMITS, chunk=64)
    decision = policy.grant(sample(5000), NOTHING, size=4500, minimum=10, now=0)
    assert decision.size == 4000 // 64 * 64
    assert "part" in decision.reason


def test_promises_not_yet_kept_count_as_spent() -> None:
    held = Holdings(granted=3000, used=0)
    assert PressurePolicy(LIMITS).grant(sample(5000), held, size=2000, minimum=1, now=0).size == 1000


def test_the_minimum_is_granted_below_the_low_line_but_not_below_the_emergency_line() -> None:
    policy = PressurePolicy(LIMITS)
    assert policy.grant(sample(900), NOTHING, size=800, minimum=600, now=0).size == 600
    refused = policy.grant(sample(900), NOTHING, size=800, minimum=700, now=0)
    assert refused.size == 0
    assert "refused" in refused.reason


def test_a_minimum_grant_below_the_low_line_starts_no_recall_until_others_take_more() -> None:
    policy = PressurePolicy(LIMITS)
    policy.grant(sample(900), NOTHING, size=100, minimum=100, now=0)
    held = Holdings(granted=100, used=100)
    assert policy.recall(sample(800), held, now=1) is None
    decision = policy.recall(sample(799), held, now=2)
    assert decision is not None
    assert decision.size == 100


def test_a_minimum_grant_below_the_low_line_comes_back_once_it_had_its_time() -> None:
    policy = PressurePolicy(LIMITS)
    policy.grant(sample(900), NOTHING, size=100, minimum=100, now=0)
    held = Holdings(granted=100, used=100)
    assert policy.recall(sample(800), held, now=21.9) is None
    assert policy.recall(sample(800), held, now=22) is not None


def test_a_recall_aims_at_the_high_line_and_never_exceeds_what_is_granted() -> None:
    held = Holdings(granted=5000, used=5000)
    decision = PressurePolicy(LIMITS).recall(sample(900), held, now=0)
    assert decision is not None
    assert decision.size == 600
    few = PressurePolicy(LIMITS).recall(sample(900), Holdings(granted=50, used=50), now=0)
    assert few is not None
    assert few.size == 50


def test_between_the_lines_nothing_is_recalled() -> None:
    held = Holdings(granted=5000, used=5000)
    assert PressurePolicy(LIMITS).recall(sample(1000), held, now=0) is None


def test_nothing_is_recalled_from_nobody() -> None:
    assert PressurePolicy(LIMITS).recall(sample(0), NOTHING, now=0) is None


def test_recalls_wait_for_the_cool_down_and_longer_when_the_last_brought_too_little() -> None:
    policy = PressurePolicy(LIMITS)
    held = Holdings(granted=5000, used=5000)
    assert policy.recall(sample(900), held, now=0) is not None
    assert policy.recall(sample(900), held, now=0.5) is None
    policy.recalled(asked=600, returned=0, now=0.5)
    assert policy.recall(sample(900), held, now=2.0) is None
    assert policy.recall(sample(900), held, now=2.5) is not None
    policy.recalled(asked=600, returned=600, now=2.5)
    assert policy.recall(sample(900), held, now=3.5) is not None


def test_what_a_recall_brought_is_set_aside_for_a_while() -> None:
    policy = PressurePolicy(LIMITS)
    policy.recalled(asked=None, returned=600, now=0)
    assert policy.grant(sample(2000), NOTHING, size=500, minimum=20, now=2.9).size == 400
    assert policy.grant(sample(1500), NOTHING, size=500, minimum=20, now=2.9).size == 20
    assert policy.grant(sample(1500), NOTHING, size=500, minimum=0, now=2.9).size == 0
    assert policy.grant(sample(1500), NOTHING, size=500, minimum=20, now=3.0).size == 500


def test_recalls_in_a_row_are_all_set_aside() -> None:
    policy = PressurePolicy(LIMITS)
    policy.recalled(asked=None, returned=600, now=0)
    policy.recalled(asked=None, returned=300, now=2)
    assert policy.grant(sample(2000), NOTHING, size=500, minimum=1, now=4.9).size == 100
    assert policy.grant(sample(2000), NOTHING, size=500, minimum=1, now=5.0).size == 500


def test_with_plenty_free_a_recall_costs_the_next_request_nothing() -> None:
    policy = PressurePolicy(LIMITS)
    policy.recalled(asked=None, returned=600, now=0)
    assert policy.grant(sample(90_000), NOTHING, size=500, minimum=20, now=0).size == 500


def test_after_an_automatic_recall_grants_stop_at_the_high_line_until_it_is_calm() -> None:
    policy = PressurePolicy(LIMITS)
    assert policy.recall(sample(900), Holdings(granted=5000, used=5000), now=0) is not None
    assert policy.grant(sample(2000), NOTHING, size=1000, minimum=1, now=21).size == 500
    assert policy.grant(sample(2000), NOTHING, size=1000, minimum=1, now=22).size == 1000


def test_a_stall_recalls_one_step_per_psi_window_while_memory_is_not_roomy() -> None:
    policy = PressurePolicy(LIMITS)
    held = Holdings(granted=50_000, used=50_000)
    first = policy.recall(sample(1800, stall=12.0), held, now=0)
    assert first is not None
    assert first.size == 500
    assert policy.recall(sample(1800, stall=12.0), held, now=9.9) is None
    assert policy.recall(sample(1800, stall=12.0), held, now=10.0) is not None


def test_a_stall_on_a_machine_with_plenty_free_is_not_ours_to_cure() -> None:
    held = Holdings(granted=50_000, used=50_000)
    assert PressurePolicy(LIMITS).recall(sample(3000, stall=90.0), held, now=0) is None


def test_a_stall_holds_grants_back() -> None:
    policy = PressurePolicy(LIMITS)
    assert policy.grant(sample(3200, stall=12.0), NOTHING, size=1000, minimum=1, now=0).size == 200


def test_the_cap_bounds_even_the_minimum_and_says_so() -> None:
    policy, held = PressurePolicy(LIMITS, cap=2000), Holdings(1500, 1500)
    part = policy.grant(sample(50_000), held, size=800, minimum=100, now=0)
    assert (part.size, part.bound) == (500, Bound.CAP)
    refused = policy.grant(sample(50_000), held, size=800, minimum=501, now=0)
    assert (refused.size, refused.bound) == (0, Bound.CAP)
    assert "cap" in refused.reason


def test_a_cap_set_below_what_is_held_is_recalled_and_calls_for_no_calm() -> None:
    policy, held = PressurePolicy(LIMITS), Holdings(1500, 1500)
    policy.cap = 1000
    order = policy.recall(sample(50_000), held, now=0)
    assert order is not None
    assert (order.size, order.gentle) == (500, False)
    policy.recalled(asked=500, returned=500, now=0)
    policy.cap = None
    assert policy.grant(sample(50_000), Holdings(1000, 1000), size=5000, minimum=1, now=0).size == 5000


def test_a_reservation_is_kept_from_every_grant_until_it_ends() -> None:
    policy = PressurePolicy(LIMITS)
    policy.reserve(3000, until=10, now=0)
    decision = policy.grant(sample(5000), NOTHING, size=2000, minimum=1, now=9.9)
    assert (decision.size, decision.bound) == (1000, Bound.RESERVED)
    assert policy.grant(sample(3200), NOTHING, size=2000, minimum=1, now=9.9).size == 0
    assert policy.grant(sample(5000), NOTHING, size=2000, minimum=1, now=10).size == 2000


def test_reservations_are_bounded_and_forgotten_in_time() -> None:
    policy = PressurePolicy(LIMITS)
    for _ in range(MAX_RESERVATIONS):
        policy.reserve(1, until=10, now=0)
    with pytest.raises(ValueError, match="too many"):
        policy.reserve(1, until=10, now=9)
    policy.reserve(1, until=20, now=10)


@given(
    available=st.integers(0, 10_000),
    granted=st.integers(0, 10_000),
    size=st.integers(0, 10_000),
    others=st.lists(st.integers(0, 3000), max_size=3),
)
def test_what_is_lacking_once_recalled_leaves_others_their_need_and_starts_no_recall(
    available: int, granted: int, size: int, others: list[int]
) -> None:
    policy, held = PressurePolicy(LIMITS), Holdings(granted, granted)
    for other in others:
        policy.reserve(other, until=100, now=0)
    lacking = policy.lacking(sample(available), held, size=size, now=0)
    assert 0 <= lacking <= granted
    if lacking < granted:
        left = Holdings(granted - lacking, granted - lacking)
        assert available + lacking >= size + sum(others)
        assert policy.recall(sample(available + lacking - size - sum(others)), left, now=0) is None


@given(available=st.integers(0, 10_000), granted=st.integers(0, 5000), cap=st.none() | st.integers(0, 9000))
def test_the_budget_is_what_an_ordinary_grant_reaches(available: int, granted: int, cap: int | None) -> None:
    policy, held = PressurePolicy(LIMITS, cap=cap), Holdings(granted, granted)
    budget = policy.budget(sample(available), held, now=0)
    most = policy.grant(sample(available), held, size=1 << 40, minimum=0, now=0).size
    assert budget.size == min(granted + most, granted + most if cap is None else cap)


@dataclasses.dataclass
class Machine:
    """A machine with a constant external load, under a secure world that asks as it likes."""

    free_without_us: int
    granted: int
    used: int

    @property
    def held(self) -> Holdings:
        return Holdings(granted=self.granted, used=self.used)

    def sample(self) -> MemorySample:
        return sample(max(0, self.free_without_us - self.used))

    def give_back(self, size: int) -> None:
        self.granted -= size
        self.used = min(self.used, self.granted)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 3000), st.integers(0, 400)),
        st.tuples(st.just("use"), st.integers(0, 3000), st.just(0)),
        st.tuples(st.just("return"), st.integers(0, 3000), st.just(0)),
        st.tuples(st.just("wait"), st.integers(0, 20), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=200)
@given(free=st.integers(0, 8000), granted=st.integers(0, 8000), steps=STEPS)
def test_under_a_constant_load_recalls_are_a_calm_time_apart(
    free: int, granted: int, steps: list[tuple[str, int, int]]
) -> None:
    granted = min(granted, free)
    machine, policy, now = Machine(free, granted, granted), PressurePolicy(LIMITS), 0.0
    recalls: list[float] = []
    for what, amount, minimum in [("wait", 0, 0), *steps]:
        now += 0.25
        match what:
            case "ask":
                least = min(minimum, amount)
                decision = policy.grant(machine.sample(), machine.held, size=amount, minimum=least, now=now)
                assert decision.size == 0 or least <= decision.size <= amount
                machine.granted += decision.size
            case "use":
                machine.used = min(machine.used + amount, machine.granted)
            case "return":
                machine.give_back(min(amount, machine.granted))
            case "wait":
                now += amount
        order = policy.recall(machine.sample(), machine.held, now=now)
        if order is not None:
            recalls.append(now)
            machine.give_back(order.size)
            policy.recalled(asked=order.size, returned=order.size, now=now)
    assert all(later - earlier >= LIMITS.calm for earlier, later in itertools.pairwise(recalls))


@settings(max_examples=200)
@given(
    free=st.integers(0, 8000), granted=st.integers(0, 8000), asks=st.lists(st.integers(1, 3000), max_size=60)
)
def test_under_a_constant_load_ordinary_grants_cost_at_most_one_recall(
    free: int, granted: int, asks: list[int]
) -> None:
    granted = min(granted, free)
    machine, policy, recalls = Machine(free, granted, granted), PressurePolicy(LIMITS), 0
    for turn, size in enumerate(asks):
        now = turn * 7.0
        machine.granted += policy.grant(machine.sample(), machine.held, size=size, minimum=0, now=now).size
        machine.used = machine.granted
        order = policy.recall(machine.sample(), machine.held, now=now + 0.25)
        if order is not None:
            recalls += 1
            machine.give_back(order.size)
            policy.recalled(asked=order.size, returned=order.size, now=now + 0.25)
    assert recalls <= 1


@settings(max_examples=200)
@given(
    free=st.integers(0, 8000),
    # One a second, within the calm time: so long a grant of the minimum lowers the line of recalls.
    asks=st.lists(
        st.tuples(st.integers(1, 3000), st.integers(0, 400), st.booleans()), max_size=int(LIMITS.calm)
    ),
)
def test_no_grant_makes_the_next_sample_start_a_recall(free: int, asks: list[tuple[int, int, bool]]) -> None:
    machine, policy = Machine(free, 0, 0), PressurePolicy(LIMITS)
    for turn, (size, minimum, touched) in enumerate(asks):
        decision = policy.grant(machine.sample(), machine.held, size=size, minimum=minimum, now=turn)
        machine.granted += decision.size
        machine.used = machine.granted if touched else machine.used
        assert policy.recall(machine.sample(), machine.held, now=turn + 0.25) is None


@settings(max_examples=200)
@given(noise=st.lists(st.integers(-100, 100), min_size=100, max_size=100))
def test_a_load_that_jitters_around_the_low_line_costs_one_recall_per_calm_time(noise: list[int]) -> None:
    machine, policy, times = Machine(9000, 8000, 8000), PressurePolicy(LIMITS), []
    for turn, jitter in enumerate(noise):
        now, seen = turn * 0.5, sample(machine.sample().available + jitter)
        order = policy.recall(seen, machine.held, now=now)
        if order is not None:
            times.append(now)
            machine.give_back(order.size)
            policy.recalled(asked=order.size, returned=order.size, now=now)
        decision = policy.grant(seen, machine.held, size=2000, minimum=0, now=now)
        machine.granted += decision.size
        machine.used = machine.granted
    assert all(later - earlier >= LIMITS.calm for earlier, later in itertools.pairwise(times))


def test_lines_of_any_machine_are_whole_bytes() -> None:
    odd = Limits.for_machine(20 * (512 * MIB + 1))
    assert [type(line) for line in (odd.low, odd.high, odd.emergency)] == [int] * 3


def test_the_emergency_line_may_be_the_low_line() -> None:
    assert Limits(low=10, high=11, emergency=10).emergency == 10


def test_a_budget_says_what_bounds_it() -> None:
    budget = PressurePolicy(LIMITS).budget(sample(5000), NOTHING, now=0)
    assert (budget.size, budget.bound) == (4000, Bound.LEVEL)
    assert budget.reason == "the rest is kept free for others"


def test_what_is_lacking_counts_promises_and_is_nothing_where_there_is_enough() -> None:
    policy, held = PressurePolicy(LIMITS), Holdings(granted=500, used=200)
    assert policy.lacking(sample(2000), held, size=800, now=0) == 100
    assert policy.lacking(sample(2000), held, size=700, now=0) == 0
    assert policy.lacking(sample(2000), held, size=1, now=0) == 0


def test_others_may_take_what_is_above_the_line_and_what_the_os_need_not_drop_files_for() -> None:
    policy, cushion = PressurePolicy(LIMITS), LIMITS.cushion

    def room(available: int, free: int | None, refaulted: int | None, held: Holdings = NOTHING) -> int:
        seen = MemorySample(100_000, available, None, free, refaulted)
        return policy.headroom(seen, held, now=0)

    assert room(5000, None, None) == 4000
    assert room(5000, None, None, Holdings(granted=500, used=200)) == 3700
    assert room(5000, cushion + 100, 0) == 100
    assert room(5000, cushion + 100_000, 0) == 4000
    assert room(5000, cushion + 100, None) == room(5000, None, 0) == 4000, "it tells only a half"
    assert room(1000, None, None) == room(900, None, None) == room(5000, 0, 0) == 0
