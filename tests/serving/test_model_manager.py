"""Which models are open, and how long they are kept."""

from __future__ import annotations

import time
import types

import pytest

from flexserve.errors import StoredDataError, UnknownModelError
from flexserve.protocol.statuses import MAX_CHUNK_RUNS, Abilities, Description, ModelStatus
from flexserve.protocol.trusted_app import Kind, Stored
from flexserve.serving import model_manager
from flexserve.serving.model_manager import ModelManager
from flexserve.testing.fake_app import CHUNK, FakeApp, FakeModel


def opened(app: FakeApp) -> list[str]:
    return [name for name, model in app.models.items() if model.is_open]


def test_a_model_is_opened_once() -> None:
    app = FakeApp(a=FakeModel(CHUNK))
    models = ModelManager(app, idle=60)
    models.fetch("a")
    models.fetch("a")
    assert app.calls == [("open", "a")]


def test_a_model_that_was_replaced_in_the_store_is_closed_and_opened_anew() -> None:
    app = FakeApp(a=FakeModel(CHUNK))
    models = ModelManager(app, idle=60)
    models.fetch("a")
    app.is_open = lambda model: False  # type: ignore[method-assign]
    models.fetch("a")
    assert app.calls == [("open", "a"), ("close", "a"), ("open", "a")]


def test_a_replaced_model_answers_on_while_requests_use_it() -> None:
    app = FakeApp(a=FakeModel(CHUNK))
    models = ModelManager(app, idle=60)
    models.fetch("a")
    app.models["a"].users.add(1)
    app.is_open = lambda model: False  # type: ignore[method-assign]
    models.fetch("a")
    assert app.calls == [("open", "a")]


def test_of_too_many_open_models_the_one_used_longest_ago_is_closed() -> None:
    app = FakeApp(1 << 40, **{f"m{number}": FakeModel(CHUNK) for number in range(10)})
    models = ModelManager(app, idle=60)
    for number in range(8):
        models.fetch(f"m{number}")
    models.used("m0", None)
    app.models["m1"].users.add(1)
    models.fetch("m8")
    assert "m2" not in opened(app), "m0 was used since, m1 is in use"
    assert {model.name: model.gone for model in models.statuses() if model.gone} == {
        "m2": "8 others were used since"
    }
    assert len(opened(app)) == 8


def test_what_opening_raises_is_raised_and_shown() -> None:
    app = FakeApp(a=FakeModel(CHUNK, error=StoredDataError("Damaged.")))
    models = ModelManager(app, idle=60)
    with pytest.raises(StoredDataError):
        models.fetch("a")
    error = models.statuses()[0].error
    assert error is not None
    assert error.message == "Damaged."
    models.record("a", None)
    assert models.statuses()[0].error is None
    with pytest.raises(UnknownModelError):
        models.fetch("b")


@pytest.mark.parametrize(("keep", "gone"), [(None, "kv and scratch"), (0.0, "all"), (-1.0, "nothing")])
def test_an_idle_model_is_kept_as_its_last_user_says(keep: float | None, gone: str) -> None:
    app = FakeApp(a=FakeModel(4 * CHUNK, is_open=True, weights=4 * CHUNK, has_scratch=CHUNK, idle_kv=CHUNK))
    models = ModelManager(app, idle=0)
    models.used("a", keep)
    assert models.tidy() is None
    held = app.used
    assert held == {"nothing": 6 * CHUNK, "kv and scratch": 4 * CHUNK, "all": 0}[gone]
    assert app.reported == 6 * CHUNK - held


def test_tidying_says_when_there_will_be_something_to_do() -> None:
    app = FakeApp(a=FakeModel(CHUNK, is_open=True, has_scratch=CHUNK), b=FakeModel(CHUNK, is_open=True))
    models = ModelManager(app, idle=100)
    models.used("a", None)
    models.used("b", None)
    wait = models.tidy()
    assert wait is not None
    assert 90 < wait <= 100
    assert app.used == CHUNK


def test_tidying_says_when_the_first_of_several_is_due() -> None:
    app = FakeApp(1 << 40, **{name: FakeModel(CHUNK, is_open=True, has_scratch=CHUNK) for name in "abc"})
    models = ModelManager(app, idle=100)
    for name, keep in (("a", None), ("b", 10.0), ("c", -1.0)):
        models.used(name, keep)
    wait = models.tidy()
    assert wait is not None
    assert 0 < wait <= 10
    assert app.calls == []


def test_what_an_idle_model_does_not_have_is_not_evicted() -> None:
    app = FakeApp(a=FakeModel(CHUNK, is_open=True, idle_kv=CHUNK), b=FakeModel(CHUNK, is_open=True))
    models = ModelManager(app, idle=0)
    assert models.tidy() is None
    assert [call[:3] for call in app.calls if call[0] == "evict"] == [("evict", "a", Kind.KV)]


def test_weights_stay_after_the_usual_time_and_are_not_waited_for() -> None:
    app = FakeApp(a=FakeModel(CHUNK, is_open=True, weights=CHUNK))
    models = ModelManager(app, idle=100)
    models.used("a", None)
    assert models.tidy() is None
    assert app.used == CHUNK


@pytest.mark.parametrize(
    ("keep", "after", "kept"),
    [(None, 0.0, None), (-1.0, 1e9, True), (5.0, 4.9, True), (5.0, 5.0, False), (0.0, 0.0, False)],
)
def test_the_last_user_of_a_model_says_whether_it_is_kept(
    keep: float | None, after: float, kept: bool | None
) -> None:
    models = ModelManager(FakeApp(a=FakeModel(CHUNK)), idle=100)
    before = time.monotonic()
    models.used("a", keep)
    last = models.last_used("a")
    assert before <= last <= time.monotonic()
    assert models.is_kept("a", last + after) is kept


def test_who_only_looks_at_a_model_changes_nothing_of_how_long_it_is_kept() -> None:
    models = ModelManager(FakeApp(a=FakeModel(CHUNK), b=FakeModel(CHUNK)), idle=100)
    models.used("a", 5.0)
    last = models.last_used("a")
    for name in ("a", "b"):
        models.used(name, None, looked=True)
    assert models.last_used("a") == last
    assert models.is_kept("a", last + 5.0) is False
    assert models.last_used("b") > 0, "it was opened for this: the newest goes last"


def test_nobody_used_a_model_that_is_new_or_was_closed() -> None:
    models = ModelManager(FakeApp(a=FakeModel(CHUNK, is_open=True)), idle=100)
    assert (models.last_used("a"), models.is_kept("a", 0.0)) == (0.0, None)
    models.used("a", 60.0)
    models.close()
    assert (models.last_used("a"), models.is_kept("a", 0.0)) == (0.0, None)


def test_a_model_is_loading_while_it_opens_and_not_afterwards() -> None:
    app = FakeApp(a=FakeModel(CHUNK), b=FakeModel(CHUNK))
    models = ModelManager(app, idle=60)
    seen: list[list[str]] = []
    opening = app.open

    def watched(model: str) -> None:
        seen.append([status.state for status in models.statuses()])
        opening(model)

    app.open = watched  # type: ignore[method-assign]
    models.fetch("b")
    assert seen == [["unloaded", "loading"]]
    app.models["a"].error = StoredDataError("Damaged.")
    with pytest.raises(StoredDataError):
        models.fetch("a")
    assert [status.state for status in models.statuses()] == ["unloaded", "unloaded"]


def test_a_status_tells_of_requests_and_of_what_they_use() -> None:
    app = FakeApp(
        a=FakeModel(4 * CHUNK, is_open=True, idle_kv=CHUNK, users={1, 2}, heap=7), b=FakeModel(CHUNK)
    )
    a, b = ModelManager(app, idle=0).statuses()
    assert (a.running, a.kv, a.heap) == (True, 3 * CHUNK, 7)
    assert (b.running, b.kv, b.heap, b.scratch, b.resident, b.weights) == (False, 0, 0, 0, 0, CHUNK)


def test_what_a_running_model_has_is_not_looked_at() -> None:
    app = FakeApp(a=FakeModel(CHUNK, is_open=True, has_scratch=CHUNK, users={1}))
    models = ModelManager(app, idle=0)
    assert models.tidy() is None
    assert app.models["a"].has_scratch == CHUNK


@pytest.mark.parametrize(("weights", "state"), [(0, "unloaded"), (CHUNK, "partial"), (4 * CHUNK, "loaded")])
def test_a_status_says_how_much_is_there(weights: int, state: str) -> None:
    app = FakeApp(a=FakeModel(4 * CHUNK, is_open=True, weights=weights, idle_kv=CHUNK, has_scratch=CHUNK))
    [status] = ModelManager(app, idle=0).statuses()
    there = weights // CHUNK
    chunks = tuple(pair for pair in ((2, there), (0, 4 - there)) if pair[1])
    assert status == ModelStatus(
        *("a", state, 4 * CHUNK, weights, CHUNK, CHUNK), running=False, chunks=chunks, leaves=0.0
    )


def test_chunks_in_too_many_pieces_are_not_told() -> None:
    app = FakeApp(a=FakeModel(4 * CHUNK, is_open=True))
    models, runs = ModelManager(app, idle=0), [(2, 1), (0, 1)] * (MAX_CHUNK_RUNS // 2)
    for told, chunks in ((tuple(runs), runs), ((), [*runs, (2, 1)])):
        app.chunks = lambda model, chunks=chunks: chunks  # type: ignore[misc]
        assert models.statuses()[0].chunks == told


def test_when_the_os_wants_everything_idle_models_close_and_others_stay() -> None:
    app = FakeApp(a=FakeModel(CHUNK), b=FakeModel(CHUNK))
    models = ModelManager(app, idle=60)
    for name in ("a", "b"):
        models.fetch(name)
    app.models["b"].users.add(1)
    models.close_idle()
    assert opened(app) == ["a", "b"]
    models.tidy()
    assert opened(app) == ["b"]
    app.models["b"].users.clear()
    models.tidy()
    assert opened(app) == ["b"]


def test_closing_closes_all() -> None:
    app = FakeApp(a=FakeModel(CHUNK, is_open=True), b=FakeModel(CHUNK, is_open=True))
    ModelManager(app, idle=0).close()
    assert opened(app) == []


# ---- what closing and giving back take along ------------------------------------------------------


def deadlines_of(app: FakeApp) -> list[float]:
    """Return a list that gets, of each model that closes, until when it may seal."""
    seen: list[float] = []
    close = app.close

    def watched(model: str, seal_until: float) -> None:
        seen.append(seal_until)
        close(model, seal_until)

    app.close = watched  # type: ignore[method-assign]
    return seen


def test_a_model_that_closes_has_a_moment_to_seal_and_one_that_was_replaced_has_none() -> None:
    app = FakeApp(1 << 40, **{f"m{number}": FakeModel(CHUNK, is_open=number > 0) for number in range(9)})
    models = ModelManager(app, idle=60)
    deadlines, now = deadlines_of(app), time.monotonic()
    models.fetch("m0")
    app.is_open = lambda model: False  # type: ignore[method-assign]
    models.fetch("m0")
    models.close()
    assert len(deadlines) == 10
    assert deadlines[1] == 0.0, "what it would seal is of a model that is gone"
    assert all(now < each < now + 60 for number, each in enumerate(deadlines) if number != 1)


def test_a_model_that_was_fetched_counts_as_used_and_does_not_close_for_itself() -> None:
    app = FakeApp(1 << 40, **{f"m{number}": FakeModel(CHUNK, users={number}) for number in range(9)})
    for model in app.models.values():
        model.is_open = bool(model.users - {0})
    app.models["m0"].users.clear()
    models = ModelManager(app, idle=60)
    models.fetch("m0")
    assert len(opened(app)) == 9, "all others are in use"
    assert models.last_used("m0") > 0.0


def test_scratch_as_large_as_the_weights_goes_with_them() -> None:
    app = FakeApp(a=FakeModel(CHUNK, is_open=True, weights=CHUNK, has_scratch=CHUNK))
    models = ModelManager(app, idle=100)
    models.used("a", 0.0)
    assert models.tidy() is None
    assert app.used == 0


def test_a_model_is_kept_to_the_last_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = types.SimpleNamespace(monotonic=lambda: 100.0)
    monkeypatch.setattr(model_manager, "time", clock)
    app = FakeApp(a=FakeModel(CHUNK, is_open=True, has_scratch=CHUNK))
    models = ModelManager(app, idle=8.0)
    models.used("a", None)
    clock.monotonic = lambda: 107.5
    assert (models.tidy(), app.used) == (0.5, CHUNK)
    assert models.statuses()[0].leaves == 500.0
    clock.monotonic = lambda: 108.0
    assert (models.tidy(), app.used) == (None, 0)
    assert app.reason == "a: idle for 8 s"


def test_a_model_goes_as_long_after_its_last_request_as_that_said(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = types.SimpleNamespace(monotonic=lambda: 100.0)
    monkeypatch.setattr(model_manager, "time", clock)
    app = FakeApp(a=FakeModel(CHUNK, is_open=True, weights=CHUNK))
    models = ModelManager(app, idle=8.0)
    models.used("a", 5.0)
    assert models.tidy() == 5.0
    clock.monotonic = lambda: 105.0
    assert (models.tidy(), app.used, app.reason) == (None, 0, "a: idle for 5 s")
    assert models.statuses()[0].gone == "idle for 5 s"


def test_what_is_granted_and_unused_goes_back_with_what_was_evicted() -> None:
    app = FakeApp(a=FakeModel(CHUNK, is_open=True, has_scratch=CHUNK))
    app.granted = 3 * CHUNK
    ModelManager(app, idle=0).tidy()
    assert app.reported == 4 * CHUNK


def test_a_model_that_was_well_may_be_well_again() -> None:
    models = ModelManager(FakeApp(a=FakeModel(CHUNK)), idle=0)
    models.record("a", None)
    assert models.statuses()[0].error is None


def test_a_status_tells_what_the_store_knows_of_a_model() -> None:
    app = FakeApp(a=FakeModel(CHUNK))
    able = Abilities(True, False, False, True, 0, False, True, "none")
    about = Description("d" * 64, 7, 1, "llama", 3, "q8_0", 512, 256, 2)
    app.stored = lambda: [Stored("a", CHUNK, able, 9, about)]  # type: ignore[method-assign]
    (status,) = ModelManager(app, idle=0).statuses()
    assert (status.abilities, status.trial, status.description) == (able, 9, about)


def test_the_size_of_an_open_model_is_that_of_its_weights_in_memory() -> None:
    app = FakeApp(a=FakeModel(CHUNK, is_open=True), b=FakeModel(CHUNK))
    app.stored = lambda: [Stored("a", CHUNK + 7), Stored("b", CHUNK + 7)]  # type: ignore[method-assign]
    assert [model.weights for model in ModelManager(app, idle=0).statuses()] == [CHUNK, CHUNK + 7]


def test_a_status_says_when_what_is_kept_goes_and_why_it_went() -> None:
    app = FakeApp(
        a=FakeModel(4 * CHUNK, is_open=True, weights=4 * CHUNK, idle_kv=CHUNK),
        b=FakeModel(CHUNK, is_open=True, weights=CHUNK, idle_kv=CHUNK, users={1}),
    )
    models = ModelManager(app, idle=60)
    models.used("a", None)
    models.used("b", None)
    kept, running = models.statuses()
    assert kept.leaves is not None
    assert 0 < kept.leaves <= 60_000
    assert running.leaves is None, "it keeps what it has as long as it answers"
    models.used("a", 0)
    models.tidy()
    assert app.reason == "a: stopped"
    (gone, _) = models.statuses()
    assert (gone.leaves, gone.gone) == (None, "stopped")
    app.models["a"].weights = 4 * CHUNK
    assert models.statuses()[0].gone == "", "all of it is back"
