"""Moving memory between models in quiet moments: only what pays, and never more than is there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flexserve.policy.eviction import Profile, Speeds, added_latency, targets
from flexserve.policy.rearrange import rearrangement
from flexserve.units import MIB

CHUNK = MIB
SPEEDS = Speeds(restore=250e6, prefill=100.0)


def profile(model: str, rate: float, weights: int = 200 * MIB) -> Profile:
    return Profile(model, weights, rate, 1.0, 8.0, SPEEDS)


def test_the_model_that_is_asked_gets_what_the_other_holds():
    step = rearrangement(
        [profile("busy", 1.0), profile("idle", 0.0)], {"busy": 50 * MIB, "idle": 200 * MIB}, chunk=CHUNK
    )
    assert step is not None
    assert (step.model, step.target, step.worthwhile) == ("busy", 200 * MIB, True)
    assert step.surplus == (("idle", 150 * MIB),)


def test_nothing_lacks_where_everything_is():
    resident = {"a": 200 * MIB, "b": 200 * MIB}
    assert rearrangement([profile("a", 1.0), profile("b", 2.0)], resident, chunk=CHUNK) is None


def test_a_few_megabytes_are_not_worth_the_trouble():
    step = rearrangement(
        [profile("busy", 1.0), profile("idle", 0.0)], {"busy": 192 * MIB, "idle": 200 * MIB}, chunk=CHUNK
    )
    assert step is not None
    assert not step.worthwhile


def test_what_no_request_will_notice_stays_where_it_is():
    slow = Profile("hidden", 200 * MIB, 1.0, 1.0, 10_000.0, SPEEDS)  # its prompts hide any restore
    step = rearrangement([slow, profile("idle", 0.0)], {"hidden": 0, "idle": 200 * MIB}, chunk=CHUNK)
    assert step is not None
    assert not step.worthwhile


SIZES = st.integers(0, 40).map(lambda count: count * CHUNK)
MODELS = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 1.0, 3.0]), SIZES), min_size=1, max_size=4)


@given(MODELS)
def test_steps_lead_to_the_best_use_and_stop_there(models):
    profiles = [profile(str(number), rate, 40 * CHUNK) for number, (rate, _) in enumerate(models)]
    resident = {str(number): size for number, (_, size) in enumerate(models)}
    held = sum(resident.values())

    def loss() -> float:
        return sum(p.rate * added_latency(p, resident[p.model]) for p in profiles)

    best = targets(profiles, held, chunk=CHUNK)
    for _ in range(len(models)):
        before = loss()
        step = rearrangement(profiles, resident, chunk=CHUNK)
        if step is None:
            break
        moved = dict(step.surplus)
        assert step.model not in moved
        for name, size in moved.items():
            resident[name] -= size
            assert resident[name] >= best[name]
        resident[step.model] += sum(moved.values())
        assert resident[step.model] <= step.target
        assert sum(resident.values()) == held
        assert loss() <= before + 1e-9
    assert all(resident[p.model] >= best[p.model] for p in profiles)


def shared(model: str, rate: float, share: float) -> Profile:
    return Profile(model, 200 * MIB, rate, share, 0.0, SPEEDS)


def test_whose_share_is_too_small_has_what_the_others_leave():
    models = [shared("busy", 3.0, 0.7), shared("seldom", 1.0, 0.3)]
    resident = {"busy": 0, "seldom": 200 * MIB}
    step = rearrangement(models, resident, chunk=CHUNK, threshold=0.5)
    assert step is not None
    assert (step.model, step.target, step.surplus) == ("busy", 200 * MIB, (("seldom", 200 * MIB),))
    few = [shared("a", 3.0, 0.1), shared("b", 3.0, 0.1), shared("c", 2.0, 0.1)]
    resident = {"a": 100 * MIB, "b": 0, "c": 0}
    assert rearrangement(few, resident, chunk=CHUNK, threshold=0.5, top=1) is None, "a comes first"


def test_the_model_that_lacks_most_comes_first():
    models = [profile("a", 1.0), profile("z", 1.0), profile("idle", 0.0)]
    step = rearrangement(models, {"a": 0, "z": 150 * MIB, "idle": 200 * MIB}, chunk=CHUNK, top=3)
    assert step is not None
    assert step.model == "a"


def test_as_much_as_is_worth_moving_is_moved():
    models = [shared("busy", 1.0, 1.0), shared("idle", 0.0, 0.0)]
    for lacking, worthwhile in ((15, False), (16, True)):
        step = rearrangement(models, {"busy": (200 - lacking) * MIB, "idle": 200 * MIB}, chunk=CHUNK)
        assert step is not None
        assert step.worthwhile is worthwhile


def test_what_saves_nothing_is_not_worth_the_trouble_however_slow_the_models_are():
    slow = [Profile(name, 400 * MIB, 1.0, 1.0, 0.0, SPEEDS) for name in "ab"]
    step = rearrangement(slow, {"a": 100 * MIB, "b": 100 * MIB}, chunk=CHUNK)
    assert step is not None
    assert step.surplus
    assert not step.worthwhile, "each byte is worth the same with either"
