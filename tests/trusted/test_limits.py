"""What single models may have: as set for them, from when they are opened next."""

from __future__ import annotations

from fake_llama import CONTEXT
from fake_world import World

from flexserve.protocol.model_options import MAX_CONTEXT, KvType, ModelOptions
from flexserve.protocol.trusted_app import Kind
from flexserve.trusted.limits import Limits, ModelLimits

LONG = "a conversation that is long enough to be worth sealing>"
USUAL = Limits(context=4096, sequences=2, sealed_kv=100)


def configure(world: World, options: ModelOptions) -> None:
    world.services.limits.configure({"a": options})


def reopen(world: World) -> None:
    """Do what the model manager does before a request, when the model is idle."""
    if not world.app.is_open("a"):
        world.app.close("a", 0)
        world.app.open("a")


def seal(world: World) -> str:
    """Have a conversation, sealed and out of memory; return its text."""
    world.say(LONG)
    for kv in world.unsealed():
        world.app.seal(kv.model, kv.sequence)
    world.recall(Kind.KV)
    return LONG + world.text()


def described(world: World) -> tuple[int, KvType]:
    about = next(it.description for it in world.app.stored() if it.name == "a")
    assert about is not None
    return about.context, about.kv


def test_what_is_set_for_a_model_goes_before_what_is_usual() -> None:
    limits = ModelLimits(USUAL)
    limits.configure({"a": ModelOptions(context=100, kv="q8_0"), "b": ModelOptions(context="model")})
    assert limits.of("a") == Limits(100, 2, 100, "q8_0")
    assert limits.of("b") == Limits(MAX_CONTEXT, 2, 100, "f16")
    assert limits.of("c") == USUAL
    limits.configure({})
    assert limits.of("a") == USUAL


def test_no_context_is_longer_than_the_trained_one_where_that_is_known() -> None:
    assert USUAL.context_of(512) == 512
    assert USUAL.context_of(8192) == 4096
    assert USUAL.context_of(0) == 4096


def test_a_model_whose_sequences_llama_cpp_mixes_has_one() -> None:
    assert USUAL.sequences_of("llama") == 2
    assert USUAL.sequences_of("plamo2") == 1


def test_a_model_is_opened_again_with_its_options_once_it_is_idle(world: World) -> None:
    request = world.generate()
    world.begin(request)
    configure(world, ModelOptions(context=100, kv="q8_0"))
    assert described(world) == (CONTEXT, "f16")  # what the running request has
    world.finish(request)
    world.app.end(request)
    assert not world.app.is_open("a")
    reopen(world)
    assert world.app.is_open("a")
    assert (world.entry().context.size, world.entry().context.kv_type) == (100, "q8_0")
    assert described(world) == (100, "q8_0")


def test_options_of_others_leave_a_model_open(world: World) -> None:
    world.services.limits.configure({"b": ModelOptions(context=100)})
    assert world.app.is_open("a")


def test_kv_sealed_in_another_type_or_context_is_silently_computed_anew(world: World) -> None:
    text = seal(world)
    for options in (ModelOptions(kv="q8_0"), ModelOptions(context=200)):
        configure(world, options)
        reopen(world)
        assert world.say(text + "on>").usage.cached_tokens == 0
    assert world.counters.damaged == world.counters.resumed == 0


def test_kv_of_the_first_type_is_found_when_the_model_is_set_back(world: World) -> None:
    text = seal(world)
    configure(world, ModelOptions(kv="q8_0"))
    reopen(world)
    configure(world, ModelOptions())
    reopen(world)
    assert world.say(text + "on>").usage.cached_tokens == len(text)
