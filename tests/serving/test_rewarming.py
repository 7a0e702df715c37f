"""Models that come back in quiet moments though no request asks for them, and go first."""

from __future__ import annotations

import pytest
from sharing import SpareMemory, evicted, loaded, manager, recall, rewarming

from flexserve.policy.rewarm import Reason, Rewarming
from flexserve.protocol.trusted_app import Kind
from flexserve.serving.rewarming import Rewarmer
from flexserve.testing.fake_app import CHUNK, FakeApp, FakeModel


def test_a_model_that_is_asked_often_comes_back_piece_by_piece_and_says_why() -> None:
    app, spare = FakeApp(a=FakeModel(8 * CHUNK, is_open=True)), SpareMemory(3 * CHUNK)
    memory, _ = rewarming(app, spare)
    memory.invoked("a", 8, None)
    seen = []
    for _ in range(5):
        memory.tidy()
        seen.append(app.models["a"].weights // CHUNK)
    assert seen == [3, 6, 8, 8, 8]
    assert spare.sizes == [8 * CHUNK, 5 * CHUNK, 2 * CHUNK], "what it lacks"
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
    assert memory.rewarmed()["a"] == (8 * CHUNK, "a: it is pinned")
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
    assert memory.rewarmed() == {"a": (3 * CHUNK, spare.reasons[0])}
    memory.answer(recall(3 * CHUNK))
    assert memory.rewarmed() == {}
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
    app.loading = True
    memory.turn("b")
    assert app.loading, "nothing is being brought back"
    app.loading = False
    memory.tidy()
    app.loading = True
    memory.turn("b")
    assert not app.loading
    app.loading = True
    memory.turn("b")
    assert app.loading, "it ended"
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


def test_a_model_that_was_announced_comes_back() -> None:
    app, spare = FakeApp(a=loaded(4), b=loaded(4), c=loaded(4)), SpareMemory(1 << 40)
    memory, _ = rewarming(app, spare)
    for _ in range(9):
        memory.invoked("a", 8, None)
    memory.invoked("a", 8, "b")
    memory.answer(recall(None))
    for _ in range(4):
        memory.tidy()
    assert app.models["c"].weights == 0
    assert app.models["b"].weights == 4 * CHUNK
    assert "b: it is expected next" in spare.reasons


def test_of_a_model_that_came_back_without_a_request_its_weights_go_first() -> None:
    app = FakeApp(a=FakeModel(8 * CHUNK, is_open=True, has_scratch=CHUNK))
    memory, _ = rewarming(app, SpareMemory(1 << 40))
    memory.invoked("a", 8, None)
    memory.tidy()
    memory.answer(recall(CHUNK))
    assert evicted(app) == [("a", Kind.WEIGHTS, CHUNK, "gone")]


def test_what_was_there_before_a_model_came_back_was_asked_for() -> None:
    app = FakeApp(a=FakeModel(8 * CHUNK, is_open=True, weights=2 * CHUNK))
    memory, _ = rewarming(app, SpareMemory(1 << 40))
    memory.invoked("a", 8, None)
    memory.tidy()
    assert {name: size for name, (size, _) in memory.rewarmed().items()} == {"a": 6 * CHUNK}


@pytest.mark.parametrize(("asked", "at_once"), [("a", True), ("b", False)])
def test_after_a_restore_that_was_used_the_next_one_in_vain_is_the_first_again(
    asked: str, at_once: bool
) -> None:
    app = FakeApp(a=FakeModel(8 * CHUNK, is_open=True))
    rewarmer = Rewarmer(app, SpareMemory(1 << 40))

    def comes_back(now: float, *, has: int) -> bool:
        app.models["a"].weights = has * CHUNK
        return rewarmer.bring_back(Rewarming("a", 8 * CHUNK, Reason.USED, 1.0), app.memory()[0], now)

    rewarmer.undone(0.0)
    assert [comes_back(now, has=0) for now in (10.0, 30.0)] == [False, True]
    rewarmer.turn(asked)
    rewarmer.undone(30.0)
    assert comes_back(60.0, has=1) is at_once
