"""Recalls: what is given back, in which order, and what is told of it."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
from sharing import evicted, loaded, manager, recall

from flexserve.protocol.trusted_app import Kind
from flexserve.testing.fake_app import CHUNK, FakeApp


def test_a_recall_takes_what_it_asks_for_and_reports_what_the_os_got() -> None:
    app = FakeApp(a=loaded(8), b=loaded(8))
    answer = manager(app).answer(recall(3 * CHUNK))
    assert (answer.serial, answer.returned) == (7, 3 * CHUNK)
    assert answer.os_before - answer.os_after == 3 * CHUNK
    assert app.granted == 0, "nothing of it is kept"
    assert answer.plan == ["weights of a: 3.0 MiB"], "the one used longest ago"


def test_a_model_that_gave_weights_up_says_for_what() -> None:
    app = FakeApp(a=loaded(8), b=loaded(8))
    memory = manager(app)
    memory.answer(recall(3 * CHUNK, reason="there was little left"))
    assert [model.gone for model in memory._models.statuses()] == ["recalled: there was little left", ""]
    memory.make_way("a", CHUNK)
    assert memory._models.statuses()[1].gone == "made way for a"


def test_a_recall_without_a_reason_is_told_as_one() -> None:
    memory = manager(FakeApp(a=loaded(8)))
    memory.answer(recall(CHUNK))
    assert memory._models.statuses()[0].gone == "recalled"


def test_a_model_that_gave_up_scratch_and_conversations_gave_up_no_weights() -> None:
    app = FakeApp(a=loaded(8, has_scratch=CHUNK, idle_kv=CHUNK))
    app.models["a"].size = 9 * CHUNK
    memory = manager(app)
    answer = memory.answer(recall(2 * CHUNK))
    assert answer.plan == ["scratch of a: 1.0 MiB", "kv of a: 1.0 MiB"]
    assert memory._models.statuses()[0].gone == ""


def test_weights_that_cannot_be_given_up_in_time_are_not_gone() -> None:
    app = FakeApp(a=loaded(4))
    app.models["a"].size = 5 * CHUNK
    app.models["a"].users.add(1)
    memory = manager(app)
    app.evict = lambda *_what, **_how: 0  # type: ignore[method-assign]
    answer = memory.answer(recall(CHUNK))
    assert (answer.returned, answer.plan) == (0, ["weights of a: 0 B"])
    assert memory._models.statuses()[0].gone == ""


def test_scratch_and_conversations_of_a_pinned_model_go_when_its_weights_stay() -> None:
    app = FakeApp(a=loaded(4, has_scratch=CHUNK, idle_kv=CHUNK))
    memory = manager(app)
    memory.pin(["a"])
    memory.answer(recall(None))
    assert app.used == app.models["a"].weights == 4 * CHUNK


def test_of_a_conversation_only_what_has_pages_counts_for_what_the_os_wants() -> None:
    app = FakeApp(a=loaded(4, idle_kv=2 * CHUNK, untouched_kv=CHUNK))
    manager(app).answer(recall(CHUNK))
    assert evicted(app) == [("a", Kind.KV, CHUNK, "gone")]


def test_the_cheaper_of_two_conversations_goes() -> None:
    app = FakeApp(a=loaded(4, idle_kv=CHUNK, last_used=1.0), b=loaded(4, idle_kv=CHUNK, last_used=2.0))
    memory = manager(app)
    memory.invoked("a", 8, None)
    memory.answer(recall(CHUNK))
    assert evicted(app) == [("b", Kind.KV, CHUNK, "gone")]


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


def test_a_recall_tells_how_long_it_took_and_has_kv_sealed_until_its_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = itertools.count(0.25)
    clock = SimpleNamespace(monotonic=lambda: next(ticks))
    app = FakeApp(a=loaded(8, idle_kv=2 * CHUNK))
    memory = manager(app)
    monkeypatch.setattr("flexserve.serving.memory_manager.time", clock)
    answer = memory.answer(recall(CHUNK, deadline=500))
    assert ("seal before", 0.75) in app.calls
    assert answer.elapsed >= 1000
    assert answer.elapsed % 1000 == 0, "whole ticks of a second, in milliseconds"


def test_scratch_of_the_model_that_was_used_longest_ago_goes_first() -> None:
    app = FakeApp(b=loaded(4, has_scratch=CHUNK), a=loaded(4, has_scratch=CHUNK))
    manager(app).answer(recall(CHUNK))
    assert evicted(app) == [("b", Kind.SCRATCH, CHUNK, "gone")]


def test_the_conversation_that_is_meant_goes() -> None:
    app = FakeApp(a=loaded(4, idle_kv=CHUNK))
    manager(app).answer(recall(CHUNK))
    assert app.conversations == [("a", 0)]
