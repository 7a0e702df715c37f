"""Which model comes back without a request, in which order, and how long after one that was in vain."""

from __future__ import annotations

from flexserve.policy.eviction import Profile, Speeds
from flexserve.policy.eviction_policy import EvictionPolicy
from flexserve.policy.rewarm import Candidate, Pause, Reason, Rewarming, rewarming
from flexserve.units import MIB


def candidate(
    model: str,
    *,
    rate: float = 1.0,
    share: float = 0.3,
    prompt: float = 2.0,
    resident: int = 0,
    kept: bool | None = None,
    expected: bool = False,
    pinned: bool = False,
) -> Candidate:
    profile = Profile(model, 1000 * MIB, rate, share, prompt, Speeds(100.0 * MIB, prefill=1.0), pinned)
    return Candidate(profile, resident * MIB, kept, expected)


def order(*candidates: Candidate, threshold: float = 0.25, top: int = 3) -> list[tuple[str, int, Reason]]:
    """Everything that comes back, one after the other."""
    resident = {each.profile.model: each.resident for each in candidates}
    found = []
    while True:
        now = [Candidate(c.profile, resident[c.profile.model], c.kept, c.expected) for c in candidates]
        step = rewarming(now, threshold=threshold, top=top)
        if step is None:
            return found
        assert step.target > resident[step.model], "a step that brings nothing"
        resident[step.model] = step.target
        found.append((step.model, step.target // MIB, step.reason))


def test_pinned_kept_expected_and_used_models_come_back_in_this_order():
    models = [
        candidate("used"),
        candidate("expected", rate=0.1, share=0.0, expected=True),
        candidate("kept", rate=0.0, share=0.0, prompt=0.0, kept=True),
        candidate("pinned", rate=0.0, share=0.0, prompt=0.0, pinned=True),
    ]
    assert [(model, reason) for model, _, reason in order(*models)][:4] == [
        ("pinned", Reason.PINNED),
        ("kept", Reason.KEPT),
        ("expected", Reason.EXPECTED),
        ("used", Reason.USED),
    ]


def test_what_no_prompt_hides_of_every_model_comes_back_before_what_one_does():
    assert order(candidate("a", rate=2.0), candidate("b", rate=1.0)) == [
        ("a", 800, Reason.USED),
        ("b", 800, Reason.USED),
        ("a", 1000, Reason.USED),
        ("b", 1000, Reason.USED),
    ]


def test_a_model_that_is_seldom_asked_stays_away():
    assert order(candidate("often", share=0.9, resident=1000), candidate("seldom", share=0.1)) == []


def test_where_none_is_asked_often_the_most_asked_ones_come_back():
    models = [
        candidate(name, share=0.2, rate=rate, prompt=0.0) for name, rate in zip("abc", (1, 3, 2), strict=True)
    ]
    assert [model for model, _, _ in order(*models, top=2)] == ["b", "c"]


def test_a_model_that_nobody_asked_for_an_hour_stays_away():
    assert order(candidate("forgotten", rate=0.0, share=0.0)) == []


def test_a_model_whose_keep_alive_is_over_stays_away_unless_it_is_pinned():
    assert order(candidate("over", kept=False, expected=True)) == []
    assert order(candidate("pinned", kept=False, pinned=True))


def test_the_reason_is_told():
    step = rewarming([candidate("often", share=0.37)], threshold=0.25, top=3)
    assert str(step) == "often: it had 37% of the requests of the last hour"


def test_each_restore_in_vain_doubles_the_time_to_the_next_one_up_to_a_limit():
    pause, now, waits = Pause(), 0.0, []
    assert pause.left(now) == 0
    for _ in range(7):
        pause.undone(now)
        waits.append(pause.left(now))
        now += pause.left(now)
    assert waits == [22, 44, 88, 176, 352, 480, 480]


def test_what_is_undone_in_several_steps_was_in_vain_once():
    pause = Pause()
    pause.undone(0.0)
    pause.undone(0.1)
    assert pause.left(0.1) == 22


def test_a_request_that_uses_what_came_back_ends_the_doubling():
    pause = Pause()
    pause.undone(0.0)
    pause.undone(30.0)
    pause.used()
    pause.undone(100.0)
    assert pause.left(100.0) == 22


def test_each_reason_has_its_words():
    words = {str(Rewarming("m", 1, reason, 0.25)) for reason in Reason}
    assert words == {
        "m: it is pinned",
        "m: its last request asked to keep it",
        "m: it is expected next",
        "m: it had 25% of the requests of the last hour",
    }


def test_of_two_models_that_are_asked_as_often_the_one_that_takes_longer_to_restore_comes_first():
    slow, fast = (
        Candidate(Profile(name, 1000 * MIB, 1.0, 0.3, 2.0, Speeds(speed * MIB, 1.0), False), 0, None, False)
        for name, speed in (("slow", 50.0), ("fast", 100.0))
    )
    assert [model for model, _, _ in order(fast, slow)][:2] == ["slow", "fast"]


def test_the_policys_own_number_says_how_many_come_back_where_none_is_asked_often():
    most, less = candidate("most", rate=2.0, share=0.1, resident=1000), candidate("less", rate=1.0, share=0.1)
    assert EvictionPolicy(MIB, top=1).rewarming([most, less]) is None
    step = EvictionPolicy(MIB, top=2).rewarming([most, less])
    assert step is not None
    assert step.model == "less"
