"""The budget that follows the foreground: memory of idle models goes to those who lack it, and comes back."""

from __future__ import annotations

import dataclasses
import itertools
import math

from hypothesis import example, given, settings
from hypothesis import strategies as st

from flexserve.platforms.ports import MemorySample
from flexserve.policy.foreground import Foreground
from flexserve.policy.pressure import Bound, Holdings, Limits, PressurePolicy, RecallDecision

LIMITS = Limits(
    low=100, high=150, emergency=25, full=25, cushion=50, refault_rate=10, calm=30, longest_calm=240
)
LOOK = 0.25  # seconds
TOTAL = 10_000


@dataclasses.dataclass
class Machine:
    """Memory shared by us and one foreground program that reads a file of `wants` bytes at random.

    What it reads stays cached while there is room, and is dropped when we or it need the room.
    """

    wants: int = 0
    speed: int = 2000  # bytes a second it reads
    ours: int = 0
    cached: int = 0
    seen: int = 0
    refaulted: int = 0
    stingy: int = TOTAL  # it may cache no more than this: a limit of its own

    @property
    def free(self) -> int:
        return TOTAL - self.ours - self.cached

    @property
    def shares(self) -> tuple[int, int]:
        return self.ours, self.cached

    @property
    def held(self) -> Holdings:
        return Holdings(self.ours, self.ours)

    def sample(self) -> MemorySample:
        return MemorySample(TOTAL, TOTAL - self.ours, 0.0, max(0, self.free), self.refaulted)

    def run(self, seconds: float) -> None:
        """Let the foreground read; all of it that is not cached is read again and again."""
        room = min(self.wants, TOTAL - self.ours, self.stingy)
        self.cached = min(self.cached, room)
        read = int(self.speed * seconds)
        missing = self.wants - self.cached
        missed = read * missing // max(1, self.wants)
        known = max(0, self.seen - self.cached)
        self.refaulted += missed * known // max(1, missing)
        self.seen = min(self.wants, self.seen + missed)
        self.cached = min(room, self.cached + missed)

    def grant(self, policy: PressurePolicy, size: int, now: float, minimum: int = 0) -> int:
        size = policy.grant(self.sample(), self.held, size=size, minimum=minimum, now=now).size
        self.ours += size
        self.cached = min(self.cached, TOTAL - self.ours)
        return size

    def relieve(self, policy: PressurePolicy, now: float) -> RecallDecision | None:
        """Look, and give back what is asked for."""
        order = policy.recall(self.sample(), self.held, now=now)
        if order is not None:
            assert 0 < order.size <= self.ours
            self.ours -= order.size
            policy.recalled(asked=order.size, returned=order.size, now=now, gentle=order.gentle)
        return order


def looks(start: float, seconds: float) -> list[float]:
    return [start + turn * LOOK for turn in range(1, int(seconds / LOOK) + 1)]


def test_a_foreground_that_fits_beside_us_takes_nothing() -> None:
    machine, policy = Machine(wants=5000, ours=4000), PressurePolicy(LIMITS)
    for now in looks(0, 60):
        machine.run(LOOK)
        assert machine.relieve(policy, now) is None


def test_a_foreground_that_grows_gets_all_it_lacks_gently_and_no_more() -> None:
    machine, policy = Machine(wants=8000, ours=8000, speed=20_000), PressurePolicy(LIMITS)
    orders = []
    for now in looks(0, 60):
        machine.run(LOOK)
        orders.append(machine.relieve(policy, now))
    assert all(order.gentle for order in orders if order)
    assert machine.cached >= machine.wants - 1
    assert 0 < machine.ours <= 2000


def test_within_a_second_of_the_first_sign_a_greedy_foreground_has_what_an_idle_model_kept() -> None:
    machine, policy = Machine(wants=50_000, ours=700, speed=200_000), PressurePolicy(LIMITS)
    machine.cached, machine.seen = TOTAL - machine.ours, 50_000
    policy.recall(machine.sample(), machine.held, now=0)
    for now in looks(0, 1.0):
        machine.run(LOOK)
        machine.relieve(policy, now)
    assert machine.ours == 0


def test_ordinary_grants_leave_the_foregrounds_cache_alone_until_it_is_calm() -> None:
    machine, policy = Machine(wants=20_000, ours=500, speed=50_000), PressurePolicy(LIMITS)
    now = 0.0
    for now in looks(0, 5):
        machine.run(LOOK)
        machine.relieve(policy, now)
    assert machine.ours == 0
    assert machine.grant(policy, 1000, now) == 0
    budget = policy.budget(machine.sample(), machine.held, now=now)
    assert (budget.size, budget.bound) == (0, Bound.FOREGROUND)
    assert machine.grant(policy, 1000, now, minimum=40) == 40  # a request still makes progress
    machine.wants = 0  # the program ended; its cache lingers
    assert machine.grant(policy, 1000, now + 29) == 0
    assert machine.grant(policy, 1000, now + 31) == 1000


def test_thrashing_in_a_limit_of_its_own_costs_us_a_cushion_at_most() -> None:
    machine, policy = Machine(wants=5000, stingy=1000, ours=TOTAL - 1000), PressurePolicy(LIMITS)
    for now in looks(0, 120):
        machine.run(LOOK)
        machine.relieve(policy, now)
    assert machine.ours >= TOTAL - 1000 - LIMITS.cushion


def test_what_the_secure_world_reads_itself_is_not_held_against_others() -> None:
    policy, held = PressurePolicy(LIMITS), Holdings(400, 400)
    policy.grant(MemorySample(TOTAL, 5000, None, 20, 0), Holdings(0, 0), size=400, minimum=0, now=0)
    assert policy.recall(MemorySample(TOTAL, 5000, None, 20, 380), held, now=1) is None
    assert policy.recall(MemorySample(TOTAL, 5000, None, 20, 480), held, now=2) is not None


def test_an_average_over_a_long_time_says_nothing_about_now() -> None:
    policy, held = PressurePolicy(LIMITS), Holdings(400, 400)
    policy.recall(MemorySample(TOTAL, 5000, None, 20, 0), held, now=0)
    assert policy.recall(MemorySample(TOTAL, 5000, None, 20, 1_000_000), held, now=60) is None


def test_a_counter_that_jumps_back_is_no_sign() -> None:
    policy, held = PressurePolicy(LIMITS), Holdings(400, 400)
    policy.recall(MemorySample(TOTAL, 5000, None, 20, 1_000_000), held, now=0)
    assert policy.recall(MemorySample(TOTAL, 5000, None, 20, 5), held, now=1) is None


def test_a_gentle_recall_that_brought_nothing_is_repeated_when_a_request_may_have_ended() -> None:
    policy, held = PressurePolicy(LIMITS), Holdings(400, 400)
    policy.recall(MemorySample(TOTAL, 5000, None, 20, 0), held, now=0)
    times = []
    for turn in range(1, 41):
        now = turn * LOOK
        sample = MemorySample(TOTAL, 5000, None, 20, turn * 100)
        order = policy.recall(sample, held, now=now)
        if order is not None:
            times.append(now)
            policy.recalled(asked=order.size, returned=0, now=now, gentle=True)
    assert all(later - earlier == 1.0 for earlier, later in itertools.pairwise(times))


def most_episodes(seconds: float) -> float:
    """How many pressure episodes the rule of calms lets begin within so many seconds, whatever others do.

    A run of k episodes ends in a quiet time. Its calms are 1, 2, 4 … times the shortest, and the quiet time
    is as long as the longest one. A last run need not end.
    """
    doublings = range(1, 1 + math.ceil(math.log2(LIMITS.longest_calm / LIMITS.calm)))
    spacing = min((LIMITS.calm * (2**k - 1) + LIMITS.longest_calm) / k for k in doublings)
    return 1 + len(doublings) + seconds / spacing


@given(signs=st.lists(st.tuples(st.floats(0.25, 4), st.integers(0, 100)), max_size=60))
def test_whatever_others_do_pressure_episodes_are_rare(signs: list[tuple[float, int]]) -> None:
    """Others lack memory at a look, and again after so many looks at which they do not."""
    foreground = Foreground(full=25, cushion=50, threshold=10, calm=30.0, longest_calm=240.0)
    episodes, now, refaulted = 0, 0.0, 0
    foreground.look(MemorySample(TOTAL, TOTAL, None, 1000, 0), now=now)
    for span, quiet in signs:
        for _ in range(quiet):
            now += span
            foreground.look(MemorySample(TOTAL, TOTAL, None, 1000, refaulted), now=now)
        now, refaulted = now + span, refaulted + 1000
        episodes += now >= foreground.calm_at
        foreground.look(MemorySample(TOTAL, TOTAL, None, 0, refaulted), now=now)
        assert foreground.calm_at > now
    assert episodes <= most_episodes(now)


@settings(max_examples=30)
@example(wants=2516, speed=100, ours=0, greed=22)
@given(
    wants=st.integers(0, 30_000),
    speed=st.integers(100, 100_000),
    ours=st.integers(0, TOTAL),
    greed=st.integers(1, 5000),
)
def test_under_any_steady_foreground_pressure_episodes_grow_rare(
    wants: int, speed: int, ours: int, greed: int
) -> None:
    """A secure world that always wants more, beside a program that always wants the same, for half an hour.

    An episode begins with a gentle recall when no sign counted any more. Where no memory moved for twice the
    longest calm, the rest of the time is the same.
    """
    machine, policy, seconds = Machine(wants=wants, speed=speed, ours=ours), PressurePolicy(LIMITS), 1800
    episodes, before, moved = 0, machine.shares, 0.0
    for now in looks(0, seconds):
        machine.run(LOOK)
        calm = now >= policy._foreground.calm_at
        order = machine.relieve(policy, now)
        episodes += calm and order is not None and order.gentle
        machine.grant(policy, greed, now)
        if machine.shares != before:
            before, moved = machine.shares, now
        if now - moved > 2 * LIMITS.longest_calm:
            break
    assert episodes <= most_episodes(seconds)


@settings(max_examples=60, deadline=None)
@given(
    demands=st.lists(st.tuples(st.integers(0, 30_000), st.integers(1, 60)), min_size=1, max_size=8),
    ours=st.integers(0, TOTAL),
    speed=st.integers(1000, 100_000),
)
def test_no_foreground_lacks_for_longer_than_a_few_looks_what_an_idle_model_keeps(
    demands: list[tuple[int, int]], ours: int, speed: int
) -> None:
    """Whatever the foreground does, once it lacks memory it has some to grow into or all of ours."""
    machine, policy, now = Machine(speed=speed, ours=ours), PressurePolicy(LIMITS), 0.0
    for wants, seconds in demands:
        machine.wants, machine.seen = wants, 0
        lacking, began = 0, now
        for now in looks(began, seconds):
            before = machine.refaulted
            machine.run(LOOK)
            sign = machine.refaulted - before >= LIMITS.refault_rate * LOOK and machine.free < LIMITS.cushion
            machine.relieve(policy, now)
            lacking = lacking + 1 if sign and machine.ours and machine.free == 0 else 0
            assert lacking <= 4


@settings(max_examples=60, deadline=None)
@given(wants=st.integers(0, 30_000), speed=st.integers(100, 100_000), ours=st.integers(0, TOTAL))
def test_memory_is_ours_again_after_the_foreground_ended(wants: int, speed: int, ours: int) -> None:
    machine, policy, now = Machine(wants=wants, speed=speed, ours=ours), PressurePolicy(LIMITS), 0.0
    for now in looks(0, 20):
        machine.run(LOOK)
        machine.relieve(policy, now)
    machine.wants = 0
    later = now + LIMITS.calm + LOOK
    machine.grant(policy, TOTAL, later)
    assert machine.ours == TOTAL - LIMITS.low


@settings(max_examples=200, deadline=None)
@given(
    readings=st.lists(
        st.tuples(
            st.floats(0, 10),
            st.integers(-(1 << 62), 1 << 62),
            st.none() | st.integers(0, 1 << 62),
            st.none() | st.integers(0, 1 << 62),
            st.integers(0, 1 << 53),
            st.integers(0, 1 << 53),
        ),
        max_size=40,
    )
)
def test_no_reading_however_absurd_breaks_the_policy(
    readings: list[tuple[float, int, int | None, int | None, int, int]],
) -> None:
    policy, now, granted = PressurePolicy(LIMITS, cap=1 << 40), 0.0, 0
    for wait, available, free, refaulted, size, minimum in readings:
        now += wait
        sample = MemorySample(TOTAL, available, None, free, refaulted)
        held = Holdings(granted, granted)
        decision = policy.grant(sample, held, size=size, minimum=min(minimum, size), now=now)
        assert 0 <= decision.size <= size
        granted += decision.size
        assert granted <= 1 << 40
        order = policy.recall(sample, Holdings(granted, granted), now=now)
        assert order is None or 0 < order.size <= granted


def test_others_are_quiet_when_a_sign_has_ceased_to_count_and_as_long_as_a_look_tells() -> None:
    foreground = Foreground(full=25, cushion=50, threshold=10, calm=30.0, longest_calm=240.0)

    def look(now: float, free: int, refaulted: int) -> None:
        foreground.look(MemorySample(TOTAL, TOTAL, None, free, refaulted), now=now)

    look(0.0, 1000, 0)
    look(1.0, 1000, 9)
    assert foreground.is_quiet(1.0)
    assert foreground.is_quiet(6.0), "five seconds after the look that told"
    assert not foreground.is_quiet(6.1)
    look(2.0, 1000, 19)
    assert not foreground.is_quiet(2.0), "ten bytes a second are a sign"
    look(3.0, 0, 29)
    assert foreground.calm_at == 33.0
    for second in range(4, 33):
        look(float(second), 1000, 29)
    assert not foreground.is_quiet(32.9)
    assert foreground.is_quiet(33.0)


# ---- what is told of others, by example -------------------------------------------------------------


def watched() -> Foreground:
    return Foreground(full=25, cushion=50, threshold=10, calm=30.0, longest_calm=240.0)


def seen(free: int, refaulted: int = 0) -> MemorySample:
    return MemorySample(TOTAL, TOTAL, None, free, refaulted)


def test_while_a_sign_counts_less_than_the_cushion_free_is_sign_enough() -> None:
    others = watched()
    others.look(seen(40), now=0.0)
    others.look(seen(40, 1000), now=1.0)
    assert others.calm_at == float("-inf"), "more than `full` is free"
    others.look(seen(10, 2000), now=2.0)
    others.look(seen(40, 3000), now=3.0)
    assert others.calm_at == 33.0


def test_others_get_the_cushion_and_twice_as_much_each_time_they_took_it() -> None:
    others = watched()
    others.look(seen(10), now=0.0)
    assert others.rate == 0.0
    assert others.wanted(seen(10)) == 0, "nothing was read back"
    others.look(seen(10, 1000), now=1.0)
    assert [others.wanted(seen(10)) for _ in range(3)] == [50 - 10, 100 - 10, 200 - 10]
    others.look(seen(10, 1000), now=40.0)
    others.look(seen(10, 2000), now=41.0)
    assert others.wanted(seen(60)) == 0, "they have more than the cushion by now"


def test_what_is_granted_within_two_seconds_is_read_by_the_secure_world_together() -> None:
    others = watched()
    others.look(seen(10), now=0.0)
    others.expect(100, now=0.0)
    others.expect(100, now=1.0)
    others.look(seen(10, 150), now=2.0)
    assert others.rate == 0.0
    others.look(seen(10, 210), now=2.5)
    assert others.rate == 20.0, "fifty were left of what it was granted"


def test_what_was_granted_longer_ago_excuses_nothing() -> None:
    others = watched()
    others.look(seen(10), now=0.0)
    others.expect(100, now=0.0)
    others.look(seen(10, 100), now=2.5)
    assert others.rate == 40.0
    others.expect(10, now=2.5)
    others.look(seen(10, 120), now=3.0)
    assert others.rate == 20.0


def test_each_episode_soon_after_the_last_one_is_followed_by_twice_its_calm() -> None:
    others, refaulted, calms = watched(), 0, []
    others.look(seen(0), now=0.0)
    for second in range(1, 800):
        refaulted += 1000 * (second >= others.calm_at)
        others.look(seen(0, refaulted), now=float(second))
        if not calms or others.calm_at != calms[-1]:
            calms.append(others.calm_at)
    assert calms == [31.0, 91.0, 211.0, 451.0, 691.0, 931.0]
