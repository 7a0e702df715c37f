"""What is done when no request waits: sealing, giving back, moving what lies with the wrong models."""

from __future__ import annotations

from sharing import Clock, SpareMemory, evicted, loaded, manager, rewarming

from flexserve.protocol.trusted_app import Kind
from flexserve.testing.fake_app import CHUNK, FakeApp, FakeModel

# ---- sealing -------------------------------------------------------------------------------------------


def unsealed(chunks: int, last_used: float, **how: int) -> FakeModel:
    return loaded(chunks, idle_kv=CHUNK, sealed=False, last_used=last_used, **how)


def seals(app: FakeApp) -> list[tuple[object, ...]]:
    return [call[1:] for call in app.calls if call[0] == "seal"]


def test_idle_kv_is_sealed_once_it_was_left_alone_for_a_second(clock: Clock) -> None:
    app = FakeApp(a=unsealed(4, clock.now))
    memory = manager(app)
    assert memory.tidy() == 1.0
    clock.now += 0.75
    assert memory.tidy() == 0.25
    assert seals(app) == []
    clock.now += 0.25
    assert memory.tidy() == 0
    assert seals(app) == [("a", 0)]


def test_kv_that_goes_back_sooner_than_it_would_be_sealed_is_sealed_before(clock: Clock) -> None:
    app = FakeApp(a=unsealed(4, clock.now))
    memory = manager(app, idle=0)
    assert memory.tidy() == 0
    memory.tidy()
    assert [call[0] for call in app.calls if call[0] in ("seal", "evict")][:2] == ["seal", "evict"]
    assert app.models["a"].idle_kv == 0


def test_no_kv_is_sealed_right_after_a_request_when_the_next_one_often_comes(clock: Clock) -> None:
    app = FakeApp(a=unsealed(4, 0.0), b=loaded(4))
    memory = manager(app)
    assert memory.tidy() == 0.25
    assert seals(app) == []
    clock.now += 0.25
    assert memory.tidy() == 0
    assert seals(app) == [("a", 0)]


def test_what_is_sealed_keeps_nothing_else_from_being_sealed(clock: Clock) -> None:
    app = FakeApp(a=loaded(4, idle_kv=CHUNK), b=unsealed(4, 0.0))
    memory = manager(app)
    clock.now += 1
    assert memory.tidy() == 0
    assert seals(app) == [("b", 0)]


def test_the_first_of_several_that_are_to_be_sealed_says_when(clock: Clock) -> None:
    app = FakeApp(a=unsealed(4, clock.now), b=unsealed(4, clock.now - 0.5), c=unsealed(4, clock.now))
    assert manager(app).tidy() == 0.5


def test_room_to_seal_in_comes_from_the_os(clock: Clock) -> None:
    app = FakeApp(a=unsealed(4, 0.0, has_scratch=CHUNK))
    memory = manager(app)
    clock.now += 1
    memory.tidy()
    assert (app.granted, app.minimum) == (CHUNK, 0), "no request waits for it"
    assert (evicted(app), seals(app)) == ([], [("a", 0)])


def test_scratch_makes_way_for_sealing_where_the_os_grants_nothing(clock: Clock) -> None:
    app = FakeApp(0, a=unsealed(4, 0.0, has_scratch=CHUNK), b=loaded(4))
    memory = manager(app)
    clock.now += 1
    memory.tidy()
    assert (evicted(app), seals(app)) == ([("a", Kind.SCRATCH, CHUNK, "kept")], [("a", 0)])


def test_what_is_to_be_sealed_and_its_models_weights_do_not_make_way_for_it(clock: Clock) -> None:
    app = FakeApp(0, a=unsealed(4, 0.0))
    memory = manager(app)
    clock.now += 1
    memory.tidy()
    assert (evicted(app), seals(app)) == ([], [("a", 0)])
    app = FakeApp(0, a=unsealed(4, 0.0), b=loaded(4))
    memory = manager(app)
    clock.now += 1
    memory.tidy()
    assert evicted(app) == [("b", Kind.WEIGHTS, CHUNK, "kept")]
    assert memory._models.statuses()[1].gone == "made way for a"


# ---- giving back ---------------------------------------------------------------------------------------


def test_what_was_granted_for_a_graph_is_kept_for_two_seconds_after_it_and_no_longer(clock: Clock) -> None:
    app = FakeApp(a=loaded(4))
    memory = manager(app)
    app.evict("a", Kind.WEIGHTS, CHUNK, keep=True)
    assert memory.tidy() == 2.0
    clock.now += 1.5
    assert (memory.tidy(), app.granted) == (0.5, CHUNK)
    clock.now += 0.5
    assert (memory.tidy(), app.granted, app.reported) == (None, 0, CHUNK)


def test_what_is_granted_and_unused_goes_back_when_no_model_is_open(clock: Clock) -> None:
    app = FakeApp()
    app.granted = CHUNK
    assert (manager(app).tidy(), app.reported) == (None, CHUNK)


def test_what_is_loaded_into_is_not_given_back_and_is_looked_at_again_soon(clock: Clock) -> None:
    app = FakeApp(a=loaded(4))
    memory = manager(app)
    app.evict("a", Kind.WEIGHTS, CHUNK, keep=True)
    clock.now += 3
    app.loading = True
    assert (memory.tidy(), app.granted) == (0.1, CHUNK)


def test_what_an_idle_model_was_kept_for_goes_back_when_it_was_kept_long_enough(clock: Clock) -> None:
    app = FakeApp(a=loaded(4, has_scratch=CHUNK))
    memory = manager(app, idle=60)
    clock.now += 50
    assert memory.tidy() == 10.0
    clock.now += 10
    assert memory.tidy() is None
    assert (app.models["a"].has_scratch, app.models["a"].weights) == (0, 4 * CHUNK)


# ---- moving --------------------------------------------------------------------------------------------


def test_what_lies_with_the_wrong_model_is_moved_and_says_for_which_one(clock: Clock) -> None:
    app = FakeApp(64 * CHUNK, busy=FakeModel(64 * CHUNK, is_open=True), idle=loaded(64))
    memory = manager(app)
    for _ in range(20):
        memory.invoked("busy", 8, None)
    assert memory.tidy() == 0
    assert app.models["busy"].weights == 64 * CHUNK
    assert evicted(app) == [("idle", Kind.WEIGHTS, 64 * CHUNK, "kept")]
    assert [model.gone for model in memory._models.statuses()] == [
        "",
        "made way for busy, which is asked more",
    ]


def test_nothing_else_is_begun_beside_a_move(clock: Clock) -> None:
    app, spare = (
        FakeApp(
            busy=FakeModel(64 * CHUNK, is_open=True),
            idle=loaded(64),
            kept=FakeModel(64 * CHUNK, is_open=True),
        ),
        SpareMemory(1 << 40),
    )
    memory, models = rewarming(app, spare)
    models.used("kept", -1.0)
    for _ in range(20):
        memory.invoked("busy", 8, None)
    app.granted = CHUNK
    clock.now += 3
    assert memory.tidy() == 0
    assert (spare.reasons, app.reported) == ([], 0)


def test_no_more_is_moved_than_is_held(clock: Clock) -> None:
    app = FakeApp(busy=FakeModel(64 * CHUNK, is_open=True), idle=FakeModel(64 * CHUNK, is_open=True))
    app.models["idle"].weights = 32 * CHUNK
    memory = manager(app)
    for _ in range(20):
        memory.invoked("busy", 8, None)
    memory.tidy()
    assert (app.models["busy"].weights, app.models["idle"].weights) == (32 * CHUNK, 0)


def test_where_memory_lies_is_looked_at_every_two_seconds(clock: Clock) -> None:
    app = FakeApp(busy=FakeModel(64 * CHUNK, is_open=True), idle=loaded(64))
    memory = manager(app)
    assert memory.tidy() is None, "all is where it belongs"
    for _ in range(20):
        memory.invoked("busy", 8, None)
    clock.now += 1.5
    assert (memory.tidy(), evicted(app)) == (2.0, [])
    clock.now += 0.5
    assert memory.tidy() == 0
    assert evicted(app) != []


def test_what_is_not_worth_a_move_stays_and_is_looked_at_again(clock: Clock) -> None:
    app = FakeApp(busy=FakeModel(4 * CHUNK, is_open=True), idle=loaded(4))
    memory = manager(app)
    for _ in range(20):
        memory.invoked("busy", 8, None)
    assert (memory.tidy(), evicted(app)) == (2.0, [])


def test_one_model_alone_is_never_rearranged_nor_are_models_without_weights(clock: Clock) -> None:
    for app in (
        FakeApp(a=loaded(4)),
        FakeApp(1 << 40, **{name: FakeModel(CHUNK, is_open=True) for name in "ab"}),
    ):
        memory = manager(app)
        assert [memory.tidy(), memory.tidy()] == [None, None]


def test_the_weights_of_a_model_that_computes_are_not_moved(clock: Clock) -> None:
    app = FakeApp(
        busy=FakeModel(64 * CHUNK, is_open=True), idle=loaded(64), other=FakeModel(CHUNK, is_open=True)
    )
    memory = manager(app)
    for _ in range(20):
        memory.invoked("busy", 8, None)
    app.models["idle"].users.add(1)
    memory.tidy()
    assert evicted(app) == []
