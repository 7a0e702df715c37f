"""What to keep of which model: beside a pipeline simulated byte by byte, and all assignments tried."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexserve.policy.eviction import InvocationLog, Profile, Speeds, added_latency, losses, targets
from flexserve.policy.ranking import cheapest

CHUNK = 10

PROFILES = st.lists(
    st.builds(
        Profile,
        model=st.sampled_from("abc"),
        weights=st.integers(1, 50),
        rate=st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0]),
        share=st.sampled_from([0.0, 0.1, 0.25, 0.6]),
        prompt=st.integers(0, 40).map(float),
        speeds=st.builds(
            Speeds, restore=st.sampled_from([1.0, 4.0, 7.0]), prefill=st.sampled_from([1.0, 5.0])
        ),
    ),
    max_size=3,
    unique_by=lambda profile: profile.model,
)


def profile(model="m", weights=100, rate=1.0, share=1.0, prompt=0.0, restore=10.0, prefill=1.0, pinned=False):
    return Profile(model, weights, rate, share, prompt, Speeds(restore, prefill), pinned)


def chunks(size: int) -> int:
    return -(-size // CHUNK)


def victims(profiles, resident, size, *, chunk):
    """(model, bytes to take off its tail): what the ranking says where nobody has KV."""
    taken = cheapest(losses(profiles, resident, chunk=chunk), [], size, chunk=chunk)
    return [(model, min(count, resident[model])) for (model, _), count in taken]


def loss(profiles, resident) -> float:
    """The expected latency per second that the cache is to make small."""
    return sum(p.rate * added_latency(p, min(resident[p.model], p.weights)) for p in profiles)


# ---- the log --------------------------------------------------------------------------------------


def test_rates_shares_and_usual_prompts_are_over_the_window():
    log = InvocationLog(window=100.0)
    for second, prompt in enumerate([10, 20, 500]):
        log.note("a", prompt, float(second))
    log.note("b", 7, 50.0)
    assert log.rate("a", 60.0) == pytest.approx(0.03)
    assert log.share("a", 60.0) == 0.75
    assert log.usual_prompt("a", 60.0) == 20
    assert log.rate("a", 101.5) == pytest.approx(0.01), "two of three are older than the window"
    assert log.usual_prompt("a", 101.5) == 500
    assert (log.rate("a", 200.0), log.share("b", 200.0), log.usual_prompt("b", 200.0)) == (0, 0, 0)


def test_of_a_model_that_was_never_invoked_the_log_knows_nothing():
    log = InvocationLog()
    assert (log.rate("a", 1.0), log.share("a", 1.0), log.usual_prompt("a", 1.0)) == (0, 0, 0)


def test_a_full_log_tells_rates_over_the_time_that_it_holds():
    log = InvocationLog(window=1000.0, limit=10)
    for second in range(101):
        log.note("a", 1, float(second))
    assert log.rate("a", 100.0) == pytest.approx(1.0)


@given(
    notes=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 99), st.floats(-1e6, 1e6)), min_size=1, max_size=30
    ),
    limit=st.integers(1, 8),
)
def test_whatever_the_clock_does_the_log_stays_bounded_and_its_shares_sum_to_one(notes, limit):
    log = InvocationLog(window=50.0, limit=limit)
    for model, prompt, now in notes:
        log.note(model, prompt, now)
        assert sum(log.share(m, now) for m in "abc") == pytest.approx(1.0)
        assert log.share(model, now) >= 1 / limit
        assert all(0 <= log.rate(m, now) <= limit for m in "abc")
    assert len(log._order) <= limit
    assert sum(len(prompts) for prompts in log._prompts.values()) == len(log._order)


def test_a_clock_that_jumps_back_loses_no_invocation_and_time_goes_on_from_there():
    log = InvocationLog(window=100.0)
    log.note("a", 1, 5000.0)
    log.note("a", 1, 10.0)
    assert log.rate("a", 20.0) == pytest.approx(0.02)
    assert log.rate("a", 109.0) == pytest.approx(0.02)
    assert log.rate("a", 111.0) == 0.0


# ---- what a missing tail costs --------------------------------------------------------------------


def stepped(weights: int, resident: int, restore: float, compute_time: float) -> float:
    """The end of a pipeline that computes byte after byte, each once it has been restored."""
    clock = 0.0
    for byte in range(weights):
        there = max(0, byte + 1 - resident) / restore
        clock = max(clock, there) + compute_time / weights
    return clock


@given(
    weights=st.integers(1, 400),
    part=st.floats(0, 1),
    restore=st.floats(1, 1000),
    prompt=st.integers(0, 50),
    prefill=st.floats(0.5, 50),
)
def test_the_formula_is_the_pipeline_computed_byte_by_byte(weights, part, restore, prompt, prefill):
    resident = int(part * weights)
    compute = prompt / prefill
    added = added_latency(profile(weights=weights, prompt=prompt, restore=restore, prefill=prefill), resident)
    # A pipeline of whole bytes ends at most one byte's work after one of infinitely small ones.
    exact = stepped(weights, resident, restore, compute) - compute
    assert added <= exact + 1e-6
    assert exact <= added + compute / weights + 1 / restore + 1e-6


@given(profiles=PROFILES)
def test_added_latency_falls_convexly_and_is_zero_from_the_exposed_bytes_on(profiles):
    for p in profiles:
        costs = [added_latency(p, resident) for resident in range(p.weights + 1)]
        gains = [before - after for before, after in itertools.pairwise(costs)]
        assert all(gain >= -1e-9 for gain in gains)
        assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(gains))
        assert costs[p.exposed] == 0.0
        assert p.exposed == 0 or costs[p.exposed - 1] > 0.0


def test_the_exposed_bytes_fall_with_the_usual_prompt():
    exposed = [profile(prompt=prompt).exposed for prompt in (0.0, 2.0, 5.0, 10.0, 50.0)]
    assert exposed == [100, 80, 50, 0, 0]


# ---- targets --------------------------------------------------------------------------------------


@given(profiles=PROFILES, budget=st.integers(-5, 200))
def test_targets_stay_within_the_budget_and_within_each_model(profiles, budget):
    found = targets(profiles, budget, chunk=CHUNK)
    assert set(found) == {p.model for p in profiles}
    assert sum(chunks(size) for size in found.values()) * CHUNK <= max(0, budget)
    for p in profiles:
        assert 0 <= found[p.model] <= p.weights
        assert found[p.model] % CHUNK == 0 or found[p.model] == p.weights
        assert p.rate > 0 or found[p.model] == 0


@given(profiles=PROFILES, budget=st.integers(0, 160))
@settings(max_examples=60)
def test_no_other_use_of_the_budget_has_less_expected_latency(profiles, budget):
    found = targets(profiles, budget, chunk=CHUNK, threshold=0.0)
    room = budget // CHUNK
    counts = [range(min(chunks(p.weights), room) + 1) for p in profiles]
    best = min(
        loss(profiles, {p.model: n * CHUNK for p, n in zip(profiles, each, strict=True)})
        for each in itertools.product(*counts)
        if sum(each) <= room
    )
    assert loss(profiles, found) == pytest.approx(best, abs=1e-9)


@given(profiles=PROFILES, budget=st.integers(0, 160))
def test_room_is_used_up_before_a_model_that_is_invoked_goes_short(profiles, budget):
    found = targets(profiles, budget, chunk=CHUNK)
    left = budget // CHUNK - sum(chunks(size) for size in found.values())
    assert left == 0 or all(found[p.model] == p.weights for p in profiles if p.rate > 0)


@given(profiles=PROFILES, budget=st.integers(0, 160), factor=st.sampled_from([1.5, 4.0]))
def test_a_model_that_is_invoked_more_often_never_gets_less(profiles, budget, factor):
    before = targets(profiles, budget, chunk=CHUNK, threshold=0.0)
    for p in profiles:
        busier = [
            profile(
                q.model, q.weights, q.rate * factor, q.share, q.prompt, q.speeds.restore, q.speeds.prefill
            )
            if q is p
            else q
            for q in profiles
        ]
        assert targets(busier, budget, chunk=CHUNK, threshold=0.0)[p.model] >= before[p.model]


def test_models_above_the_threshold_come_before_others_however_much_those_would_gain():
    often = profile("often", share=0.3, rate=0.3, prompt=5.0)
    rare = profile("rare", share=0.2, rate=0.2, restore=0.1)
    assert targets([often, rare], 100, chunk=10) == {"often": 100, "rare": 0}
    assert targets([often, rare], 130, chunk=10) == {"often": 100, "rare": 30}


def test_without_a_model_above_the_threshold_the_top_three_by_rate_are_chosen():
    four = [profile(name, share=0.2, rate=rate) for name, rate in zip("abcd", (4, 3, 2, 1), strict=True)]
    assert targets(four, 300, chunk=10) == {"a": 100, "b": 100, "c": 100, "d": 0}
    assert targets(four, 350, chunk=10)["d"] == 50


def test_what_no_prompt_hides_comes_before_what_one_does():
    long = profile("long", rate=5.0, prompt=6.0)  # 40 of 100 bytes exposed
    short = profile("short", rate=1.0, prompt=1.0)  # 90
    assert targets([long, short], 130, chunk=10) == {"long": 40, "short": 90}
    assert targets([long, short], 150, chunk=10) == {"long": 60, "short": 90}


def test_pinned_models_come_first_and_whole_even_if_nobody_invokes_them():
    pinned = profile("pinned", rate=0.0, share=0.0, pinned=True)
    busy = profile("busy", rate=9.0)
    assert targets([pinned, busy], 120, chunk=10) == {"pinned": 100, "busy": 20}
    assert targets([pinned, busy], 60, chunk=10) == {"pinned": 60, "busy": 0}


# ---- victims --------------------------------------------------------------------------------------


@given(profiles=PROFILES, parts=st.lists(st.integers(0, 5), min_size=3, max_size=3), size=st.integers(0, 160))
@settings(max_examples=60)
def test_no_other_way_to_free_as_much_costs_less(profiles, parts, size):
    resident = {
        p.model: min(part, chunks(p.weights)) * CHUNK for p, part in zip(profiles, parts, strict=False)
    }
    taken = dict(victims(profiles, resident, size, chunk=CHUNK))
    needed = min(chunks(size), sum(resident.values()) // CHUNK)
    assert sum(taken.values()) == needed * CHUNK
    best = min(
        loss(profiles, {m: resident[m] - n * CHUNK for m, n in zip(resident, each, strict=True)})
        for each in itertools.product(*(range(held // CHUNK + 1) for held in resident.values()))
        if sum(each) == needed
    )
    left = {model: held - taken.get(model, 0) for model, held in resident.items()}
    assert loss(profiles, left) == pytest.approx(best, abs=1e-9)


@given(
    profiles=PROFILES,
    resident=st.dictionaries(st.sampled_from("abcd"), st.integers(0, 90)),
    size=st.integers(-5, 300),
)
def test_victims_are_named_once_and_never_lose_more_than_they_have(profiles, resident, size):
    taken = victims(profiles, resident, size, chunk=CHUNK)
    assert len({model for model, _ in taken}) == len(taken)
    assert all(0 < count <= resident[model] for model, count in taken)
    held = sum(chunks(size) for size in resident.values())
    gone = sum(chunks(count) for _, count in taken)
    assert gone == min(chunks(max(0, size)), held)


def test_hidden_tails_go_before_exposed_heads_and_strangers_before_both():
    long = profile("long", prompt=6.0)  # 40 of 100 bytes exposed
    short = profile("short", prompt=0.0)
    resident = {"long": 100, "short": 100, "stranger": 20}
    take = lambda size: victims([long, short], resident, size, chunk=10)  # noqa: E731
    assert take(20) == [("stranger", 20)]
    assert take(80) == [("stranger", 20), ("long", 60)]
    assert dict(take(180))["stranger"] == 20


def test_pinned_models_are_last_even_if_nobody_invokes_them():
    pinned = profile("pinned", rate=0.0, pinned=True)
    busy = profile("busy", rate=9.0)
    resident = {"pinned": 100, "busy": 100}
    assert victims([pinned, busy], resident, 110, chunk=10) == [("busy", 100), ("pinned", 10)]


@given(profiles=PROFILES, budget=st.integers(0, 160), size=st.integers(0, 160))
def test_what_a_recall_leaves_is_the_best_distribution_of_what_is_left(profiles, budget, size):
    """Taking victims of the best assignment leaves the best assignment of the smaller budget."""
    kept = targets(profiles, budget, chunk=CHUNK, threshold=0.0)
    whole = {model: chunks(held) * CHUNK for model, held in kept.items()}
    for model, count in victims(profiles, whole, size, chunk=CHUNK):
        whole[model] -= count
    again = targets(profiles, sum(whole.values()), chunk=CHUNK, threshold=0.0)
    assert loss(profiles, whole) == pytest.approx(loss(profiles, again), abs=1e-9)


@pytest.mark.parametrize("speeds", [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (math.nan, 1.0)])
def test_speeds_that_are_not_positive_are_refused(speeds):
    with pytest.raises(ValueError, match="positive"):
        Speeds(*speeds)


def test_the_usual_prompt_is_that_of_the_latest_hundred_and_one_requests():
    log = InvocationLog(window=1000.0)
    for second in range(150):
        log.note("a", 10, float(second))
    for second in range(51):
        log.note("a", 500, 150.0 + second)
    assert log.usual_prompt("a", 200.0) == 500.0


@pytest.mark.parametrize(("window", "limit"), [(0.0, 1), (-1.0, 1), (100.0, 0)])
def test_a_log_without_a_window_or_without_room_is_refused(window, limit):
    with pytest.raises(ValueError, match="window"):
        InvocationLog(window, limit)
    assert InvocationLog(0.5, 1).rate("a", 0.0) == 0


def test_after_a_clock_jumped_back_invocations_grow_old_as_before():
    log = InvocationLog(window=100.0)
    log.note("a", 1, 1000.0)
    log.note("a", 1, 0.0)
    log.note("a", 1, 60.0)
    log.note("b", 1, 150.0)
    assert log.share("a", 150.0) == 0.5, "of three, the one ninety seconds ago is left"


def test_of_models_below_the_threshold_no_more_than_the_top_ones_come_before_others():
    often, gains = (
        profile("often", rate=4.0, share=0.2, restore=100.0),
        profile("gains", rate=3.0, share=0.2, restore=10.0),
    )
    assert targets([often, gains], 100, chunk=CHUNK, threshold=0.25, top=1)["often"] == 100
    assert targets([often, gains], 100, chunk=CHUNK, threshold=0.25, top=2)["gains"] == 100


def test_what_is_held_beyond_a_model_is_worth_nothing():
    first = losses([profile(weights=100)], {"m": 120}, chunk=CHUNK)[0]
    assert (first.value, first.chunks) == ((0.0, 0.0), 2)
