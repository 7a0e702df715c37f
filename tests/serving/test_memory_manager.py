"""Granting or evicting, and what is done in quiet moments: sealing, giving back, moving."""

from __future__ import annotations

import pytest
from sharing import evicted, loaded, manager

from flexserve.errors import GrantRefusedError
from flexserve.policy.eviction_policy import EvictionPolicy
from flexserve.protocol.answers import Finished, Timings, Usage
from flexserve.protocol.statuses import KvStatus
from flexserve.protocol.trusted_app import IdleKv, Kind, Missing
from flexserve.testing.fake_app import CHUNK, FakeApp, FakeModel

# ---- grant or evict ------------------------------------------------------------------------------------


def test_while_the_os_grants_nobody_makes_way() -> None:
    app = FakeApp(a=FakeModel(4 * CHUNK, is_open=True), b=loaded(4))
    manager(app).provide_weights("a")
    assert (app.granted, app.minimum) == (4 * CHUNK, CHUNK)
    assert evicted(app) == []


def test_what_the_os_does_not_grant_idle_models_give_up_and_the_grants_stay() -> None:
    app = FakeApp(5 * CHUNK, a=FakeModel(3 * CHUNK, is_open=True), b=loaded(4))
    manager(app).provide_weights("a")
    assert app.granted == 3 * CHUNK
    assert evicted(app) == [("b", Kind.WEIGHTS, 2 * CHUNK, "kept")]


def test_idle_models_make_way_for_what_graphs_read_and_if_told_to_for_a_whole_model() -> None:
    for how, given_up in (({}, CHUNK), ({"whole": True}, 3 * CHUNK)):
        app = FakeApp(5 * CHUNK, a=FakeModel(4 * CHUNK, is_open=True), b=loaded(4))
        app.missing = lambda model: Missing(4 * CHUNK, 2 * CHUNK, CHUNK)  # type: ignore[method-assign]
        manager(app).provide_weights("a", **how)
        assert evicted(app) == [("b", Kind.WEIGHTS, given_up, "kept")]


def test_scratch_goes_before_kv_and_kv_before_weights() -> None:
    app = FakeApp(
        6 * CHUNK, a=FakeModel(3 * CHUNK, is_open=True), b=loaded(4, has_scratch=CHUNK, idle_kv=CHUNK)
    )
    manager(app).provide_weights("a")
    assert [(kind, size) for _, kind, size, _ in evicted(app)] == [
        (Kind.SCRATCH, CHUNK),
        (Kind.KV, CHUNK),
        (Kind.WEIGHTS, CHUNK),
    ]


def test_a_running_model_and_a_pinned_one_do_not_make_way() -> None:
    app = FakeApp(8 * CHUNK, a=FakeModel(4 * CHUNK, is_open=True), b=loaded(4), c=loaded(4))
    app.models["c"].users.add(1)
    app.models["c"].kv = 0
    memory = manager(app)
    memory.pin(["b"])
    assert memory.make_way("a", CHUNK) == 0
    memory.pin([])
    assert memory.make_way("a", CHUNK) == CHUNK


def test_scratch_and_idle_conversations_of_a_pinned_model_make_way() -> None:
    app = FakeApp(0, a=loaded(4, has_scratch=CHUNK, idle_kv=CHUNK), b=FakeModel(CHUNK, is_open=True))
    app.models["a"].size = 5 * CHUNK
    memory = manager(app)
    memory.pin(["a"])
    assert memory.make_way("b", 8 * CHUNK) == 2 * CHUNK
    assert [(kind, size) for _, kind, size, _ in evicted(app)] == [(Kind.SCRATCH, CHUNK), (Kind.KV, CHUNK)]
    assert memory._models.statuses()[0].gone == "", "no weights went"


def test_a_single_byte_is_made_way_for_and_none_is_not() -> None:
    app = FakeApp(0, a=loaded(4), b=FakeModel(CHUNK, is_open=True))
    memory = manager(app)
    assert [memory.make_way("b", size) for size in (-1, 0)] == [0, 0]
    assert evicted(app) == []
    assert memory.make_way("b", 1) == CHUNK


def test_a_model_does_not_make_way_for_itself_but_its_idle_conversations_do() -> None:
    app = FakeApp(0, a=loaded(4, has_scratch=CHUNK, idle_kv=2 * CHUNK))
    assert manager(app).make_way("a", 8 * CHUNK) == 2 * CHUNK
    assert evicted(app) == [("a", Kind.KV, 2 * CHUNK, "kept")]


def test_work_that_was_refused_memory_is_done_again_once_somebody_made_way() -> None:
    app = FakeApp(4 * CHUNK, a=FakeModel(CHUNK, is_open=True), b=loaded(4))
    memory, tries = manager(app), []

    def work() -> str:
        tries.append(app.granted)
        if app.granted < 2 * CHUNK:
            raise GrantRefusedError("No memory.", missing=2 * CHUNK - app.granted)
        return "done"

    assert memory.with_memory("a", work) == "done"
    assert tries == [0, 2 * CHUNK]


def test_work_that_nobody_can_make_way_for_is_refused() -> None:
    def work() -> None:
        raise GrantRefusedError("No memory.", missing=CHUNK)

    with pytest.raises(GrantRefusedError):
        manager(FakeApp(0, a=FakeModel(CHUNK, is_open=True))).with_memory("a", work)


def test_a_refusal_that_does_not_say_how_much_is_missing_is_final() -> None:
    def work() -> None:
        raise GrantRefusedError("No memory.")

    app = FakeApp(0, a=FakeModel(CHUNK, is_open=True), b=loaded(4))
    with pytest.raises(GrantRefusedError):
        manager(app).with_memory("a", work)
    assert evicted(app) == []


def test_what_is_provided_comes_from_the_os_first_and_then_from_idle_models() -> None:
    app = FakeApp(5 * CHUNK, a=FakeModel(CHUNK, is_open=True), b=loaded(4))
    memory = manager(app)
    memory.provide("a", CHUNK)
    assert (evicted(app), app.minimum) == ([], 0)
    memory.provide("a", 3 * CHUNK)
    assert evicted(app) == [("b", Kind.WEIGHTS, 2 * CHUNK, "kept")]
    assert app.granted == 3 * CHUNK


def test_what_is_provided_for_a_model_does_not_come_from_its_own_weights() -> None:
    app = FakeApp(0, a=loaded(4), b=loaded(4))
    manager(app).provide("a", 8 * CHUNK)
    assert [(name, size) for name, _, size, _ in evicted(app)] == [("b", 4 * CHUNK)]


def test_the_weights_that_a_model_has_do_not_make_way_for_those_that_it_lacks() -> None:
    app = FakeApp(0, a=FakeModel(4 * CHUNK, is_open=True, weights=2 * CHUNK, has_scratch=CHUNK))
    manager(app).provide_weights("a")
    assert evicted(app) == []


def test_idle_kv_makes_way_with_all_that_is_granted_for_it() -> None:
    app = FakeApp(0, a=loaded(4, idle_kv=2 * CHUNK, untouched_kv=CHUNK), c=FakeModel(CHUNK, is_open=True))
    assert manager(app).make_way("c", 2 * CHUNK) == 2 * CHUNK
    assert evicted(app) == [("a", Kind.KV, 2 * CHUNK, "kept")]
    assert app.conversations == [("a", 0)]


# ---- what requests tell ----------------------------------------------------------------------------------


def test_an_announced_model_comes_in_if_that_takes_no_more_than_a_moment() -> None:
    app = FakeApp(a=loaded(4), b=FakeModel(4 * CHUNK), slow=FakeModel(CHUNK, opens_at_once=False))
    memory = manager(app)
    memory.invoked("a", 8, "b")
    assert app.models["b"].weights == 4 * CHUNK
    memory.invoked("a", 8, "slow")
    assert not app.models["slow"].is_open
    memory.invoked("a", 8, "unknown")
    memory.invoked("a", 8, "a")


def test_speeds_that_were_measured_tell_what_a_restore_takes() -> None:
    app = FakeApp(a=FakeModel(100 * CHUNK, is_open=True))
    memory = manager(app)
    before = memory.restore_seconds("a")
    timings = Timings(restore=100, prefill=100, restored_bytes=1 << 30)
    for _ in range(20):
        memory.measured("a", Finished(1, "stop", Usage(100, 1), timings))
    assert memory.restore_seconds("a") < before / 10
    assert memory.restore_seconds("a") == pytest.approx(100 * CHUNK / (5 * (1 << 30)), rel=0.01)


def test_a_restore_counts_with_the_prompt_that_was_computed_beside_it() -> None:
    app = FakeApp(a=FakeModel(100 * CHUNK, is_open=True))
    memory = manager(app)
    timings = Timings(restore=2000, prefill=3000, restored_bytes=1 << 30)
    for _ in range(40):
        memory.measured("a", Finished(1, "stop", Usage(100, 1), timings))
    assert memory.restore_seconds("a") == pytest.approx(100 * CHUNK / ((1 << 30) / 5), rel=1e-4)


def test_a_finished_request_tells_how_fast_its_prompt_was_and_whether_it_continued_a_conversation() -> None:
    policy = EvictionPolicy(CHUNK)
    memory = manager(FakeApp(a=loaded(4)), policy)
    policy.invoked("a", 100, None, 0.0)
    idle = IdleKv("a", 0, CHUNK, CHUNK, 100, 0.0, False, worth_sealing=True)

    def continued(cached: int) -> float:
        for _ in range(400):
            usage = Usage(100 + cached, 1, cached_tokens=cached)
            memory.measured("a", Finished(1, "stop", usage, Timings(prefill=500)))
        return policy.conversations([idle], 1.0)[0].rate * 3600

    assert continued(cached=0) == pytest.approx(0.0, abs=1e-6)
    assert continued(cached=1) == pytest.approx(1.0)
    assert policy.profile("a", CHUNK, 1.0, pinned=False).speeds.prefill == pytest.approx(200.0, rel=1e-6)


def test_what_was_resumed_from_sealed_copies_tells_how_long_that_takes() -> None:
    app, policy = FakeApp(a=loaded(4)), EvictionPolicy(CHUNK)
    memory = manager(app, policy)
    app.kv = KvStatus(resumed_tokens=1000, resumed_ms=500)
    memory.invoked("a", 8, None)
    sealed = IdleKv("a", 0, CHUNK, CHUNK, 1000, 0.0, True, worth_sealing=False)
    assert policy.conversations([sealed], 1.0)[0].seconds == pytest.approx(0.5)


# ---- KV and weights ------------------------------------------------------------------------------------


def test_kv_that_is_dear_stays_and_weights_that_nobody_asks_for_go() -> None:
    app = FakeApp(0, a=loaded(4, idle_kv=CHUNK, tokens=1000), b=loaded(4), c=FakeModel(CHUNK, is_open=True))
    app.models["a"].sealed = False
    memory = manager(app)
    memory.invoked("a", 8, None)
    assert memory.make_way("c", 2 * CHUNK) == 2 * CHUNK
    assert evicted(app) == [("b", Kind.WEIGHTS, 2 * CHUNK, "kept")]


def test_kv_that_no_request_continues_goes_before_weights() -> None:
    app = FakeApp(0, a=loaded(4, idle_kv=CHUNK), b=loaded(4), c=FakeModel(CHUNK, is_open=True))
    memory = manager(app)
    memory.invoked("b", 8, None)
    assert memory.make_way("c", CHUNK) == CHUNK
    assert evicted(app) == [("a", Kind.KV, CHUNK, "kept")]
