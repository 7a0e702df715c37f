"""The memory of a trusted application over a fake engine: told, evicted, loaded, sealed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from fake_engine import CHUNK
from fake_llama import KV, WHOLE, FakeContext, answer_to
from fake_world import World, eventually

from flexserve.protocol.statuses import Abilities
from flexserve.protocol.trusted_app import Kind, ModelMemory

Make = Callable[..., World]
ALL = 1 << 30
LONG = "a conversation that is long enough to be worth sealing>"


def memory(world: World, model: str = "a") -> ModelMemory:
    return next(it for it in world.app.memory() if it.name == model)


# ---- memory ---------------------------------------------------------------------------------------


def test_memory_is_told_by_what_it_is_for(world: World) -> None:
    request = world.generate()
    world.begin(request)
    world.app.step("a", [request], 64)
    it = memory(world)
    assert (it.weights, it.scratch, it.idle_kv, it.used_kv) == (WHOLE - 2000, 3 * CHUNK, 0, KV)
    assert it.running
    world.app.end(request)
    it = memory(world)
    assert (it.idle_kv, it.used_kv, it.running) == (KV, 0, False)


def test_the_work_area_is_scratch_of_the_model_that_ran_last(world: World) -> None:
    world.app.open("b")
    world.say(model="b")
    world.say(model="a")
    assert [it.scratch for it in world.app.memory()] == [3 * CHUNK, 2 * CHUNK]
    world.recall(Kind.SCRATCH, model="b")
    assert world.engine.work_committed == CHUNK
    assert world.recall(Kind.SCRATCH) == 3 * CHUNK
    assert world.engine.work_committed == 0


def test_what_is_idle_is_evicted_by_kind(world: World) -> None:
    world.say()
    assert world.recall(Kind.SCRATCH) == 3 * CHUNK
    assert world.recall(Kind.KV) == KV
    assert world.recall(Kind.WEIGHTS, 2 * CHUNK) == 2 * CHUNK
    assert world.app.missing("a").size == 2 * CHUNK
    assert world.recall(Kind.WEIGHTS) == WHOLE - 2 * CHUNK
    assert world.recall(Kind.WEIGHTS) == 0
    assert world.app.pool().secure == 0


def test_what_is_evicted_for_another_stays_granted(world: World) -> None:
    world.say()
    kept = world.app.evict("a", Kind.KV, ALL, keep=True) + world.app.evict("a", Kind.SCRATCH, ALL, keep=True)
    kept += world.app.evict("a", Kind.WEIGHTS, CHUNK, keep=True)
    assert world.app.pool().granted == kept == KV + 4 * CHUNK
    returned = world.app.return_unused()
    assert returned == kept
    world.budget.granted -= returned


def test_what_a_request_uses_is_not_evicted(world: World) -> None:
    request = world.generate()
    world.begin(request)
    world.app.step("a", [request], 64)
    assert world.app.evict("a", Kind.SCRATCH, ALL, keep=True) == 0
    assert world.app.evict("a", Kind.KV, ALL, keep=True) == 0
    world.finish(request)
    assert world.text() == answer_to("hello>")


def test_weights_of_a_running_model_go_between_two_slices(world: World) -> None:
    request = world.generate()
    world.begin(request)
    evicted: list[int] = []

    def recall() -> None:
        evicted.append(world.app.evict("a", Kind.WEIGHTS, 2 * CHUNK, keep=True, until=time.monotonic() + 60))

    recalls: list[threading.Thread] = []

    def inside(_context: FakeContext) -> None:
        if not recalls:
            recalls.append(threading.Thread(target=recall))
            recalls[0].start()

    world.engine.inside = inside
    world.finish(request)
    recalls[0].join()
    assert evicted == [2 * CHUNK]
    assert world.text() == answer_to("hello>")


def test_in_the_middle_of_a_slice_weights_do_not_go(world: World) -> None:
    request = world.generate()
    world.begin(request)
    evicted: list[int] = []

    def inside(_context: FakeContext) -> None:
        thread = threading.Thread(
            target=lambda: evicted.append(world.app.evict("a", Kind.WEIGHTS, ALL, keep=False, until=0.0))
        )
        thread.start()
        thread.join()

    world.engine.inside = inside
    world.app.step("a", [request], 64)
    assert set(evicted) == {0}


def test_of_a_model_that_is_not_open_nothing_is_evicted(world: World) -> None:
    assert [world.app.evict("b", kind, ALL, keep=False) for kind in Kind] == [0, 0, 0]


def test_weights_come_in_ahead_of_need_and_no_further_than_told(world: World) -> None:
    world.app.load("a", 3 * CHUNK)
    eventually(lambda: memory(world).weights >= 3 * CHUNK)
    eventually(lambda: not world.app.loading)
    assert memory(world).weights == 3 * CHUNK
    world.app.load("a", None)
    eventually(lambda: memory(world).whole)
    assert world.say().timings.restored_bytes == 0


def test_loading_ahead_of_need_can_be_ended(world: World) -> None:
    world.entry()._model.source.hold.clear()
    world.app.load("a", None)
    assert world.app.loading
    ending = threading.Thread(target=world.app.stop_loading)
    ending.start()
    world.entry()._model.source.hold.set()
    ending.join()
    eventually(lambda: not world.app.loading)


def test_what_was_granted_for_a_request_is_kept_for_it(world: World) -> None:
    world.app.open("b")
    assert world.app.grant(WHOLE + 2 * CHUNK, 0) == WHOLE + 2 * CHUNK  # with scratch
    world.budget.limit = world.budget.granted
    world.residency.prefetch(world.entry("b").weights, range(8))
    world.app.run(world.warm())
    assert memory(world).whole


# ---- KV -------------------------------------------------------------------------------------------


def test_idle_kv_is_sealed_and_comes_back_after_it_was_evicted(world: World) -> None:
    world.say(LONG)
    (unsealed,) = world.unsealed()
    assert (unsealed.model, unsealed.sequence) == ("a", 0)
    assert world.app.sealing_size("a", 0) == (len(LONG) + 8) * 64
    world.app.seal("a", 0)
    assert world.unsealed() == []
    world.app.evict("a", Kind.KV, ALL, keep=True)
    turn = LONG + world.text() + " and on>"
    request = world.generate(turn)
    world.prepare(request)
    assert world.app.plaintext(request) > 0
    world.app.begin(request)
    end = world.finish(request)[request]
    assert end.finished is not None
    assert end.finished.usage.cached_tokens == len(LONG) + 8
    assert world.text() == answer_to(turn)
    assert (world.counters.sealed, world.counters.resumed) == (1, 1)


def test_kv_that_is_in_use_again_is_not_sealed(world: World) -> None:
    world.say(LONG)
    request = world.generate(LONG + world.text() + " and on>")
    world.begin(request)
    world.app.seal("a", 0)
    assert world.counters.sealed == 0


def test_before_a_recall_idle_kv_is_sealed_where_scratch_was(make_world: Make) -> None:
    world = make_world()
    world.say(LONG)
    world.budget.limit = world.budget.granted  # nothing more is granted
    world.app.seal_before(time.monotonic() + 60)
    assert world.counters.sealed == 1
    assert memory(world).scratch == 0
    returned = world.app.return_unused()
    world.budget.granted -= returned


def test_before_a_recall_nothing_of_a_running_model_is_sealed(world: World) -> None:
    world.say(LONG)
    request = world.generate("another>")
    world.begin(request)
    world.app.seal_before(time.monotonic() + 60)
    assert world.counters.sealed == 0


def test_a_recall_without_time_seals_nothing(world: World) -> None:
    world.say(LONG)
    world.app.seal_before(time.monotonic() - 1)
    assert world.counters.sealed == 0
    returned = world.app.return_unused()
    world.budget.granted -= returned


def test_a_model_that_closes_in_peace_seals_its_conversations(make_world: Make) -> None:
    world = make_world()
    world.say(LONG)
    said = world.text()
    world.app.close("a", time.monotonic() + 60)
    world.app.open("a")
    assert world.say(LONG + said + "?>").usage.cached_tokens == len(LONG) + 8


def test_a_model_that_closes_in_haste_seals_nothing(world: World) -> None:
    world.say(LONG)
    world.app.close("a", 0)
    assert world.counters.sealed == 0


def test_each_slice_is_a_sign_of_life(world: World) -> None:
    before = world.app.last_moved()
    world.say()
    assert world.app.last_moved() > before


def test_abilities_that_were_found_before_are_those_of_the_model_that_opens(world: World) -> None:
    world.app.run(world.try_it("a"))
    world.app.close("a", 0)
    world.app.open("a")
    assert isinstance(world.entry().abilities, Abilities)
    assert world.entry().abilities == world.app.stored()[0].abilities
