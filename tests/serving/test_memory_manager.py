"""Granting or evicting, recalls, and moving what lies with the wrong models."""

from __future__ import annotations

import time
from typing import Any

import pytest

from flexserve.errors import GrantRefusedError
from flexserve.policy.eviction_policy import EvictionPolicy
from flexserve.protocol.messages import Finished, Recall, Timings, Usage
from flexserve.protocol.trusted_app import Kind, Missing
from flexserve.serving.memory_manager import MemoryManager
from flexserve.serving.model_manager import ModelManager
from flexserve.testing.fake_app import CHUNK, FakeApp, FakeModel


def loaded(chunks: int, **how: Any) -> FakeModel:
    return FakeModel(chunks * CHUNK, is_open=True, weights=chunks * CHUNK, **how)


def manager(app: FakeApp) -> MemoryManager:
    models = ModelManager(app, idle=3600)
    for name in app.models:
        models.used(name, None)
        time.sleep(0.001)
    return MemoryManager(app, models)


def evicted(app: FakeApp) -> list[tuple[object, ...]]:
    return [call[1:] for call in app.calls if call[0] == "evict"]


# ---- grant or evict -----------------------------------------------------------------------------


def test_while_the_os_grants_nobody_makes_way() -> None:
    app = FakeApp(a=FakeModel(4 * CHUNK, is_open=True), b=loaded(4))
    manager(app).provide_weights("a")
    assert app.granted == 4 * CHUNK
    assert evicted(app) == []


def test_what_the_os_does_not_grant_idle_models_give_up_and_the_grants_stay() -> None:
    app = FakeApp(5 * CHUNK, a=FakeModel(3 * CHUNK, is_open=True), b=loaded(4))
    manager(app).provide_weights("a")
    assert app.granted == 3 * CHUNK
    assert evicted(app) == [("b", Kind.WEIGHTS, 2 * CHUNK, "kept")]


def test_idle_models_make_way_for_what_graphs_read_and_if_told_to_for_a_whole_model() -> None:
    for whole, given_up in ((False, CHUNK), (True, 3 * CHUNK)):
        app = FakeApp(5 * CHUNK, a=FakeModel(4 * CHUNK, is_open=True), b=loaded(4))
        app.missing = lambda model: Missing(4 * CHUNK, 2 * CHUNK, CHUNK)  # type: ignore[method-assign]
        manager(app).provide_weights("a", whole=whole)
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


# ---- recalls --------------------------------------------------------------------------------------


def recall(demand: int | None, *, gentle: bool = False, deadline: float = 100) -> Recall:
    return Recall(serial=7, demand=demand, deadline=deadline, gentle=gentle)


def test_a_recall_takes_what_it_asks_for_and_reports_what_the_os_got() -> None:
    app = FakeApp(a=loaded(8), b=loaded(8))
    answer = manager(app).answer(recall(3 * CHUNK))
    assert (answer.serial, answer.returned) == (7, 3 * CHUNK)
    assert answer.os_before - answer.os_after == 3 * CHUNK
    assert app.granted == 0, "nothing of it is kept"
    assert answer.plan == ["weights of a: 3.0 MiB"], "the one used longest ago"


def test_what_is_granted_and_unused_goes_first() -> None:
    app = FakeApp(a=loaded(8))
    app.grant(2 * CHUNK, 0)
    assert manager(app).answer(recall(CHUNK)).returned == 3 * CHUNK
    assert app.granted == 0


def test_what_lies_ready_goes_first_and_counts_for_what_the_os_wanted() -> None:
    app = FakeApp(a=loaded(8))
    app.evict("a", Kind.WEIGHTS, 3 * CHUNK, keep=True)
    app.calls.clear()
    answer = manager(app).answer(recall(2 * CHUNK))
    assert answer.returned == answer.os_before - answer.os_after == 3 * CHUNK
    assert evicted(app) == [], "the demand was met"
    assert app.granted == 0


def test_a_recall_without_a_number_takes_all_that_is_not_in_use() -> None:
    app = FakeApp(a=loaded(8, has_scratch=CHUNK, idle_kv=CHUNK), b=loaded(4))
    app.models["b"].users.add(1)
    answer = manager(app).answer(recall(None))
    assert app.models["a"].weights == app.models["a"].has_scratch == app.models["a"].idle_kv == 0
    assert app.models["b"].weights == 4 * CHUNK
    assert answer.protected == 5 * CHUNK


def test_weights_in_use_go_for_a_definite_demand_that_nothing_else_meets() -> None:
    app = FakeApp(a=loaded(4), b=loaded(4))
    app.models["b"].users.add(1)
    answer = manager(app).answer(recall(6 * CHUNK))
    assert [call[:3] for call in evicted(app)] == [
        ("a", Kind.WEIGHTS, 4 * CHUNK),
        ("b", Kind.WEIGHTS, 2 * CHUNK),
    ]
    assert answer.returned == 6 * CHUNK


def test_a_gentle_recall_takes_nothing_that_runs_or_is_pinned() -> None:
    app = FakeApp(a=loaded(4), b=loaded(4), c=loaded(4))
    app.models["b"].users.add(1)
    memory = manager(app)
    memory.pin(["c"])
    memory.answer(recall(100 * CHUNK, gentle=True))
    assert [app.models[name].weights for name in "abc"] == [0, 4 * CHUNK, 4 * CHUNK]


def test_a_pinned_model_goes_last_for_a_definite_demand_and_not_at_all_for_an_indefinite_one() -> None:
    app = FakeApp(a=loaded(4), b=loaded(4))
    memory = manager(app)
    memory.pin(["a"])
    memory.answer(recall(None))
    assert [app.models[name].weights for name in "ab"] == [4 * CHUNK, 0]
    memory.answer(recall(CHUNK))
    assert app.models["a"].weights == 3 * CHUNK


def test_idle_kv_is_sealed_before_it_goes_and_not_when_it_stays() -> None:
    app = FakeApp(a=loaded(8, idle_kv=2 * CHUNK, has_scratch=CHUNK))
    memory = manager(app)
    memory.answer(recall(CHUNK))
    assert not [call for call in app.calls if call[0] == "seal before"]
    memory.answer(recall(CHUNK))
    assert [call for call in app.calls if call[0] == "seal before"]
    assert app.models["a"].idle_kv == 0


def test_a_recall_ends_what_is_loaded_ahead() -> None:
    app = FakeApp(a=loaded(4))
    app.loading = True
    manager(app).answer(recall(CHUNK))
    assert not app.loading


def test_a_recall_that_finds_nothing_says_so() -> None:
    answer = manager(FakeApp()).answer(recall(CHUNK))
    assert (answer.returned, answer.plan) == (0, [])


# ---- quiet moments --------------------------------------------------------------------------------


def test_idle_kv_is_sealed_once_it_was_left_alone_for_a_second() -> None:
    app = FakeApp(a=loaded(4, idle_kv=CHUNK))
    app.models["a"].sealed = False
    app.models["a"].last_used = time.monotonic()
    memory = manager(app)
    wait = memory.tidy()
    assert wait is not None
    assert 0.5 < wait <= 1
    app.models["a"].last_used -= 1
    memory._models._used["a"] = (time.monotonic() - 1, None)
    assert memory.tidy() == 0
    assert ("seal", "a", 0) in app.calls


def test_no_kv_is_sealed_right_after_a_request_when_the_next_one_often_comes() -> None:
    app = FakeApp(a=loaded(4, idle_kv=CHUNK), b=loaded(4))
    app.models["a"].sealed = False
    memory = manager(app)
    memory._models.used("b", None)
    wait = memory.tidy()
    assert wait is not None
    assert 0 < wait <= 0.25
    assert ("seal", "a", 0) not in app.calls


def test_what_was_granted_for_a_graph_is_kept_for_a_moment_after_it_and_no_longer() -> None:
    app = FakeApp(a=loaded(4))
    memory = manager(app)
    memory._models.used("a", None)
    app.evict("a", Kind.WEIGHTS, CHUNK, keep=True)
    wait = memory.tidy()
    assert wait is not None
    assert 1 < wait <= 2
    assert app.granted == CHUNK
    memory._models._used["a"] = (time.monotonic() - 3, None)
    app.loading = True
    assert memory.tidy() is not None
    assert app.granted == CHUNK, "it is what is loaded into"
    app.loading = False
    memory.tidy()
    assert (app.granted, app.reported) == (0, CHUNK)


def test_what_lies_with_the_wrong_model_is_moved() -> None:
    app = FakeApp(64 * CHUNK, busy=FakeModel(64 * CHUNK, is_open=True), idle=loaded(64))
    memory = manager(app)
    for _ in range(20):
        memory.invoked("busy", 8, None)
    assert memory.tidy() == 0, "nothing else is begun beside it"
    assert app.models["busy"].weights == 64 * CHUNK
    assert app.models["idle"].weights == 0


def test_one_model_alone_is_never_rearranged() -> None:
    assert manager(FakeApp(a=loaded(4))).tidy() is None


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


# ---- brought back without a request ----------------------------------------------------------------


class SpareMemory:
    """A normal world that says how much nobody needs, and remembers what it was for."""

    def __init__(self, size: int) -> None:
        self.size, self.reasons = size, list[str]()

    def __call__(self, size: int, reason: str) -> int:
        self.reasons.append(reason)
        return min(size, self.size) // CHUNK * CHUNK


def rewarming(app: FakeApp, spare: SpareMemory, idle: float = 3600) -> tuple[MemoryManager, ModelManager]:
    models = ModelManager(app, idle)
    for name in app.models:
        models.used(name, None)
    return MemoryManager(app, models, EvictionPolicy(app.chunk), spare), models


def test_a_model_that_is_asked_often_comes_back_piece_by_piece_and_says_why() -> None:
    app, spare = FakeApp(a=FakeModel(8 * CHUNK, is_open=True)), SpareMemory(3 * CHUNK)
    memory, _ = rewarming(app, spare)
    memory.invoked("a", 8, None)
    seen = []
    for _ in range(5):
        memory.tidy()
        seen.append(app.models["a"].weights // CHUNK)
    assert seen == [3, 6, 8, 8, 8]
    assert set(spare.reasons) == {"a: it had 100% of the requests of the last hour"}
    assert memory.rewarmed() == {"a": (8 * CHUNK, spare.reasons[0])}


def test_a_model_that_ends_within_a_chunk_comes_back_whole() -> None:
    app = FakeApp(a=FakeModel(2 * CHUNK + 1000, is_open=True))
    memory, _ = rewarming(app, SpareMemory(2 * CHUNK))
    memory.invoked("a", 8, None)
    for _ in range(3):
        memory.tidy()
    assert app.models["a"].weights == 2 * CHUNK + 1000


def test_a_model_comes_back_no_further_than_memory_is_spare() -> None:
    app, spare = FakeApp(a=FakeModel(8 * CHUNK, is_open=True)), SpareMemory(0)
    memory, _ = rewarming(app, spare)
    memory.invoked("a", 8, None)
    assert memory.tidy() == 2, "and it is asked again"
    assert app.models["a"].weights == 0
    assert memory.rewarmed() == {}


def test_a_piece_that_did_not_come_is_not_asked_for_again_at_once() -> None:
    app, spare = FakeApp(0, a=FakeModel(8 * CHUNK, is_open=True)), SpareMemory(1 << 40)
    memory, _ = rewarming(app, spare)
    memory.invoked("a", 8, None)
    waits = [memory.tidy() for _ in range(4)]
    assert waits == [0.1, 2, 0.1, 2]
    assert len(spare.reasons) == 2


def test_what_is_pinned_is_not_the_first_to_be_recalled_though_no_request_asked() -> None:
    app = FakeApp(a=FakeModel(8 * CHUNK, is_open=True), b=loaded(4))
    memory, _ = rewarming(app, SpareMemory(1 << 40))
    memory.pin(["a"])
    memory.tidy()
    memory.answer(recall(2 * CHUNK))
    assert evicted(app) == [("b", Kind.WEIGHTS, 2 * CHUNK, "gone")]


def test_without_the_setting_nothing_comes_back() -> None:
    app = FakeApp(a=FakeModel(8 * CHUNK, is_open=True))
    memory = manager(app)
    memory.invoked("a", 8, None)
    memory.tidy()
    assert app.models["a"].weights == 0


def test_what_came_back_without_a_request_is_recalled_before_scratch_and_not_brought_back_at_once() -> None:
    app, spare = (
        FakeApp(a=FakeModel(8 * CHUNK, is_open=True), b=loaded(4, has_scratch=CHUNK)),
        SpareMemory(1 << 40),
    )
    memory, _ = rewarming(app, spare)
    memory.invoked("a", 8, None)
    memory.tidy()
    memory.answer(recall(5 * CHUNK))
    assert evicted(app) == [("a", Kind.WEIGHTS, 5 * CHUNK, "gone")]
    asked = len(spare.reasons)
    memory.tidy()
    assert len(spare.reasons) == asked


def test_what_a_request_used_is_recalled_by_its_value() -> None:
    app = FakeApp(a=FakeModel(8 * CHUNK, is_open=True), b=loaded(4))
    memory, _ = rewarming(app, SpareMemory(1 << 40))
    for _ in range(9):
        memory.invoked("a", 8, None)
    memory.tidy()
    memory.turn("a")
    assert memory.rewarmed() == {}
    memory.answer(recall(2 * CHUNK))
    assert evicted(app) == [("b", Kind.WEIGHTS, 2 * CHUNK, "gone")]


def test_a_request_ends_what_is_being_brought_back_and_not_what_was_announced() -> None:
    app = FakeApp(a=FakeModel(8 * CHUNK, is_open=True), b=FakeModel(8 * CHUNK))
    memory, _ = rewarming(app, SpareMemory(1 << 40))
    memory.invoked("a", 8, None)
    memory.tidy()
    app.loading = True
    memory.turn("b")
    assert not app.loading
    memory.invoked("a", 8, "b")
    app.loading = True
    memory.turn("a")
    assert app.loading


def test_a_model_whose_keep_alive_is_over_does_not_come_back_and_one_that_is_to_be_kept_does() -> None:
    app = FakeApp(kept=FakeModel(2 * CHUNK, is_open=True), over=FakeModel(2 * CHUNK, is_open=True))
    memory, models = rewarming(app, SpareMemory(1 << 40))
    memory.invoked("over", 8, None)
    models.used("over", 0.0)
    models.used("kept", -1.0)
    for _ in range(3):
        memory.tidy()
    assert (app.models["kept"].weights, app.models["over"].weights) == (2 * CHUNK, 0)


def test_a_model_that_computes_is_left_alone() -> None:
    app = FakeApp(a=FakeModel(8 * CHUNK, is_open=True))
    memory, _ = rewarming(app, SpareMemory(1 << 40))
    memory.invoked("a", 8, None)
    app.models["a"].users.add(1)
    memory.tidy()
    assert app.models["a"].weights == 0


# ---- KV and weights ---------------------------------------------------------------------------------


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
