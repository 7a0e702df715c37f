"""The trusted application over a fake engine: it does what it is told, as far as that hurts nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from fake_llama import KV, WHOLE, FakeContext, FakeModel, answer_to
from fake_world import World, eventually

from flexserve.errors import (
    CallerError,
    CancelledError,
    FlexServeError,
    GrantRefusedError,
    PeerError,
    UnknownModelError,
)
from flexserve.protocol.answers import Embedded, Started
from flexserve.protocol.trusted_app import Missing, ModelMemory, Pool, Work

Make = Callable[..., World]
ALL = 1 << 30
LONG = "a conversation that is long enough to be worth sealing>"


def memory(world: World, model: str = "a") -> ModelMemory:
    return next(it for it in world.app.memory() if it.name == model)


# ---- models ---------------------------------------------------------------------------------------


def test_an_open_model_holds_no_memory(world: World) -> None:
    it = memory(world)
    assert (it.weights, it.scratch, it.idle_kv, it.used_kv, it.running) == (0, 0, 0, 0, False)
    assert it.size == WHOLE - 2000
    assert it.heap > 0
    assert world.app.pool() == Pool(0, 0, 0, 0)


def test_models_are_told_whether_they_are_open_or_not(world: World) -> None:
    assert [it.name for it in world.app.stored()] == ["a", "b"]
    assert world.app.is_open("a")
    assert not world.app.is_open("b")
    for ask in (world.app.is_open, world.app.opens_at_once, world.app.open):
        with pytest.raises(UnknownModelError):
            ask("c")


def test_a_model_opens_at_once_when_it_is_open_or_has_an_image(world: World) -> None:
    assert world.app.opens_at_once("a")
    assert not world.app.opens_at_once("b")
    with world.store.open("b") as sealed:
        world.store.derived.image_path(sealed.manifest, world.engine.fingerprint).touch()
    assert world.app.opens_at_once("b")


def test_another_model_under_the_name_of_an_open_one_is_not_open(world: World, tmp_path) -> None:
    world.store.remove("a")
    world.add("a", tmp_path)
    assert not world.app.is_open("a")


def test_what_an_idle_model_could_do_does_not_count_for_the_one_under_its_name(
    world: World, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(FakeModel, "vectors", False)
    world.app.open("b")
    with pytest.raises(CallerError):
        world.app.require(world.embed("text", model="b"))
    world.store.remove("b")
    world.add("b", tmp_path)
    world.app.require(world.embed("text", model="b"))


def test_a_closed_model_has_given_all_of_its_memory_back(world: World) -> None:
    world.say()
    world.app.close("a", 0)
    world.app.report_returned(world.engine.release_work())
    assert world.app.memory() == []
    assert world.app.pool() == Pool(0, 0, 0, 0)
    assert world.budget.granted == 0


def test_a_model_without_abilities_for_a_request_refuses_it(world: World, monkeypatch) -> None:
    monkeypatch.setattr(FakeModel, "vectors", False)
    world.app.require(world.generate(model="b"))  # nobody knows yet
    world.app.open("b")
    world.app.require(world.generate(model="b"))
    with pytest.raises(CallerError) as caught:
        world.app.require(world.embed("text", model="b"))
    assert caught.value.code == "embeddings_unsupported"
    world.app.require(world.try_it("b"))


def test_what_a_trial_found_counts_before_the_model_is_opened_again(world: World, monkeypatch) -> None:
    monkeypatch.setattr(FakeModel, "vectors", False)
    world.app.open("b")
    world.app.run(world.try_it("b"))
    world.app.close("b", 0)
    with pytest.raises(CallerError):
        world.app.require(world.embed("text", model="b"))
    monkeypatch.undo()
    found = {it.name: it for it in world.app.stored()}
    assert found["a"].abilities is None
    assert found["b"].abilities is not None
    assert not found["b"].abilities.vectors
    assert found["b"].trial > 0


def test_what_another_engine_found_out_does_not_count(world: World) -> None:
    world.app.run(world.try_it())
    world.engine.identity = "another engine"
    assert all(it.abilities is None and it.trial == 0 for it in world.app.stored())


# ---- requests -------------------------------------------------------------------------------------


def test_policy_learns_of_a_request_what_it_needs_for_its_turn(world: World) -> None:
    before = time.monotonic()
    request = world.generate("secret>", priority=3, next_model="b", keep_alive=5.0)
    ticket = world.app._requests[request].ticket
    assert (ticket.request, ticket.model, ticket.work) == (request, "a", Work.GENERATE)
    assert (ticket.priority, ticket.next_model, ticket.keep_alive) == (3, "b", 5.0)
    assert before <= ticket.received <= time.monotonic()
    works = [world.app._requests[it].ticket for it in (world.embed("x"), world.warm(), world.try_it())]
    assert [(it.work, it.next_model, it.keep_alive) for it in works] == [
        (Work.EMBED, None, None),
        (Work.WARM, None, None),
        (Work.TRY, None, None),
    ]


def test_a_normal_world_that_gives_two_requests_one_number_breaks_the_protocol(world: World) -> None:
    request = world.generate("mine>")
    message = world.app._requests[request].message
    with pytest.raises(PeerError, match="one number"):
        world.app.admit(message)
    world.app.end(request)
    assert world.app.admit(message).request == request, "the number of a request that ended is free"


def test_a_model_runs_while_a_request_of_it_is_prepared(world: World, monkeypatch) -> None:
    gate, vocabulary = threading.Event(), world.entry().vocabulary
    encode = vocabulary.encode

    def held(text: str, **how: bool) -> list[int]:
        gate.wait()
        return encode(text, **how)

    monkeypatch.setattr(vocabulary, "encode", held)
    ended: list[FlexServeError | None] = []
    request = world.generate()
    world.app.prepare(request, ended.append)
    assert memory(world).running
    assert not world.app.is_prepared(request)
    gate.set()
    eventually(lambda: bool(ended))
    assert ended == [None]
    assert not memory(world).running
    assert world.app.is_prepared(request)


def test_what_was_prepared_for_a_model_that_closed_is_prepared_again(world: World) -> None:
    request = world.generate()
    world.prepare(request)
    world.app.close("a", 0)
    world.app.open("a")
    assert not world.app.is_prepared(request)


def test_a_prompt_that_cannot_be_prepared_is_its_senders_fault(world: World) -> None:
    with pytest.raises(CallerError) as caught:
        world.prepare(world.generate(""))
    assert caught.value.code == "prompt_empty"
    with pytest.raises(CallerError) as caught:
        world.prepare(world.generate("x" * 512))
    assert caught.value.code == "context_length_exceeded"
    assert not memory(world).running


def test_there_are_as_many_generations_at_once_as_sequences(world: World) -> None:
    first, second, third = (world.generate(f"number {n}>") for n in range(3))
    assert world.begin(first) is not None
    assert world.begin(second) is not None
    assert world.begin(third) is None
    assert memory(world).used_kv == 2 * KV
    world.app.end(first)
    assert world.begin(third) is not None


def test_a_request_that_ended_leaves_its_kv_for_the_next_turn(world: World) -> None:
    world.say(LONG)
    turn = LONG + world.text() + " and on>"
    finished = world.say(turn)
    assert finished.usage.cached_tokens == len(LONG) + 8
    assert world.text() == answer_to(turn)


def test_a_request_that_wants_no_reuse_neither_finds_nor_leaves_kv(world: World) -> None:
    world.say(LONG)
    assert world.say(LONG, reuse=False).usage.cached_tokens == 0
    assert world.say(LONG, owner="other", reuse=False).usage.cached_tokens == 0
    assert world.say(LONG, owner="other").usage.cached_tokens == 0


def test_nobody_finds_the_kv_of_another_owner(world: World) -> None:
    world.say(LONG, owner="first")
    assert world.say(LONG, owner="second").usage.cached_tokens == 0


def test_a_request_that_cannot_have_memory_takes_no_sequence(make_world: Make) -> None:
    world = make_world(memory=0)
    request = world.generate()
    with pytest.raises(GrantRefusedError):
        world.begin(request)
    world.budget.limit = ALL
    assert world.app.begin(request) is not None
    world.finish(request)
    assert world.text() == answer_to("hello>")


def test_ending_and_stopping_what_there_is_not_is_safe(world: World) -> None:
    world.app.stop(99)
    world.app.end(99)


def test_a_request_that_ends_frees_its_sampler_and_its_sequence(world: World) -> None:
    request = world.generate()
    world.begin(request)
    sampler = world.app._requests[request].generation._sampler  # type: ignore[union-attr]
    world.app.end(request)
    assert sampler._chain is None  # type: ignore[union-attr]
    assert not memory(world).running


# ---- requests that are no generations -------------------------------------------------------------


def test_vectors_of_texts_come_in_order(world: World) -> None:
    finished = world.app.run(world.embed("aab", "dd"))
    assert world.sent[0] == Started(1, 5)
    (embedded,) = [it for it in world.sent if isinstance(it, Embedded)]
    vectors = [memoryview(it).cast("f").tolist() for it in embedded.vectors]
    assert vectors[0] == pytest.approx([2 / 5**0.5, 1 / 5**0.5, 0, 0])
    assert vectors[1] == pytest.approx([0, 0, 0, 1])
    assert finished.usage.prompt_tokens == 5
    assert finished.timings.restored_bytes == WHOLE - 2000


def test_many_vectors_come_in_several_messages(world: World) -> None:
    world.app.run(world.embed(*["text"] * 130))
    assert [len(it.vectors) for it in world.sent if isinstance(it, Embedded)] == [64, 64, 2]


def test_texts_that_are_too_long_together_are_refused_before_anything_is_computed(world: World) -> None:
    with pytest.raises(CallerError, match="tokens together"):
        world.app.run(world.embed(*["x" * 1024] * 1025))
    assert world.sent == []


def test_an_embedding_that_was_refused_memory_goes_on_behind_what_it_sent(world: World) -> None:
    request = world.embed(*[f"{n}" for n in range(70)])

    def refuse(context: FakeContext) -> None:
        if any(isinstance(it, Embedded) for it in world.sent):
            raise GrantRefusedError("No memory.", hint="Wait.", missing=1)

    world.engine.inside = refuse
    with pytest.raises(GrantRefusedError):
        world.app.run(request)
    world.engine.inside = lambda _context: None
    finished = world.app.run(request)
    assert [len(it.vectors) for it in world.sent if isinstance(it, Embedded)] == [64, 6]
    assert sum(isinstance(it, Started) for it in world.sent) == 1
    assert finished.usage.prompt_tokens == 10 + 60 * 2


def test_a_stopped_embedding_ends_before_its_next_text(world: World) -> None:
    request = world.embed("one", "two")
    world.engine.inside = lambda _context: world.app.stop(request)
    with pytest.raises(CancelledError):
        world.app.run(request)
    assert not any(isinstance(it, Embedded) for it in world.sent)


def test_a_request_that_was_stopped_before_does_not_run(world: World) -> None:
    request = world.warm()
    world.app.stop(request)
    with pytest.raises(CancelledError):
        world.app.run(request)
    assert memory(world).weights == 0


def test_an_embedding_survives_a_damaged_image(world: World) -> None:
    world.entry()._model.source.damaged.add((0, 0))
    world.app.run(world.embed("abc"))
    assert world.entry()._model.remade == 1


def test_warming_brings_all_weights_in_and_says_so(world: World) -> None:
    assert world.app.missing("a") == Missing(WHOLE, WHOLE, world.app.missing("a").minimum)
    finished = world.app.run(world.warm())
    assert finished.timings.restored_bytes == WHOLE - 2000
    assert memory(world).whole
    assert world.app.missing("a").size == 0
    assert world.app.missing("b") == Missing(0, 0, 0)


def test_warming_mends_a_damaged_image(world: World) -> None:
    world.entry()._model.source.damaged.add((1, 0))
    world.app.run(world.warm())
    assert world.entry()._model.remade == 1
    assert memory(world).whole
