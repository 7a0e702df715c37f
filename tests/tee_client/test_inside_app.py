"""The port over a trusted application that is reached by messages: what policy has it do, it does."""

from __future__ import annotations

import os
import re
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from inside_world import PATIENCE, InsideWorld, Unanswered
from played_application import CHUNK, CONTEXT, KV, SCRATCH, WEIGHTS, PlayedApplication, answer_to

from flexserve.errors import CallerError, PeerError, StoredDataError, UnknownModelError
from flexserve.protocol.answers import Delta, Embedded
from flexserve.protocol.prompts import (
    AskTemplate,
    ChatMessage,
    ChatPrompt,
    TextPrompt,
    ToText,
    ToTokens,
)
from flexserve.protocol.requests import Convert, Embed, Generate, Try
from flexserve.protocol.sampling import LogitBias, Sampling
from flexserve.protocol.trusted_app import Kind
from flexserve.tee_client import steps
from flexserve.tee_client.app import InsideApp
from flexserve.tee_client.files import SealedFiles
from flexserve.tee_client.link import Link
from flexserve.tee_client.messages import Ask, Status
from flexserve.testing.trustzone import eventually
from flexserve.trusted import limits
from flexserve.trusted.limits import Limits, ModelLimits
from flexserve.trusted.text.rendering.renderer import Renderer

WHOLE = WEIGHTS + KV + SCRATCH  # chunks of a model that computes
MakeWorld = Callable[..., InsideWorld]


# ---- answers -------------------------------------------------------------------------------------


def test_a_text_is_answered_token_by_token(world: InsideWorld) -> None:
    finished = world.ask(world.generation("hello>"))
    assert world.text() == answer_to("hello>")
    assert (finished.reason, finished.usage.prompt_tokens, finished.usage.completion_tokens) == ("stop", 6, 8)
    first = next(answer for answer in world.answers if isinstance(answer, Delta))
    assert (first.text, first.ids) == (world.text()[0], [ord(world.text()[0])])


def test_a_conversation_is_rendered_outside(world: InsideWorld) -> None:
    assert world.say(ChatPrompt([ChatMessage("user", "hi")])) == answer_to("user: hi>")


def test_an_answer_ends_at_its_limit_at_a_stop_string_and_at_a_token(world: InsideWorld) -> None:
    whole = answer_to("hello>")
    assert world.ask(world.generation(max_tokens=3)).reason == "length"
    assert world.text() == whole[:3]
    assert world.ask(world.generation(stop=["never", whole[2:4]])).reason == "stop"
    assert world.text() == whole[:2]
    assert world.ask(world.generation(stop_token_ids=[ord(whole[4])])).reason == "stop"
    assert world.text() == whole[: whole.index(whole[4])]
    assert world.ask(world.generation(max_tokens=0)).usage.completion_tokens == 0


def test_a_text_ends_no_answer_before_so_many_tokens(world: InsideWorld) -> None:
    whole = answer_to("hello>")
    assert world.say(stop=[whole[0]], min_tokens=2).startswith(whole[:1])


def test_log_probabilities_come_with_their_tokens(world: InsideWorld) -> None:
    world.say(logprobs=2, max_tokens=1)
    [told] = [choice for answer in world.answers if isinstance(answer, Delta) for choice in answer.choices]
    first = answer_to("hello>")[0].encode()
    assert (told.token.piece, told.token.logprob, len(told.top)) == (first, -0.25, 2)


def test_tokens_that_the_model_does_not_have_are_told(world: InsideWorld) -> None:
    with pytest.raises(Unanswered, match="no token of that number"):
        world.say(logit_bias=[LogitBias(1 << 20, 2.0)])
    assert world.say() == answer_to("hello>")


def test_what_holds_back_a_stop_string_comes_out_in_the_end(world: InsideWorld) -> None:
    whole = answer_to("hello>")
    assert world.say(stop=[whole[-1] + "!"]) == whole


def test_requests_at_once_are_answered_each_with_its_own(world: InsideWorld) -> None:
    requests = [world.generation(f"prompt {number}>") for number in range(4)]
    for request in requests:
        world.submit(request)
    answers = []
    for _ in requests:
        world.ended()
        answers = list(world.answers)
    for number, request in enumerate(requests):
        said = (it.text for it in answers if isinstance(it, Delta) and it.request == request.request)
        assert "".join(said) == answer_to(f"prompt {number}>")


def test_a_model_whose_sequences_llama_cpp_mixes_is_opened_with_one_and_requests_wait_for_it(
    world: InsideWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_ALONE", {world.app._services.files.manifest("a").architecture})
    requests = [world.generation(f"prompt {number}>") for number in range(3)]
    for request in requests:
        world.submit(request)
    for _ in requests:
        world.ended()
    [model] = world.played.models.values()
    assert len(model.cached) == 1
    about = next(stored.description for stored in world.app.stored() if stored.name == "a")
    assert about is not None
    assert about.sequences == 1


def test_policy_learns_which_sequence_a_request_computes_in(world: InsideWorld) -> None:
    world.app.open("a")
    begun = []
    for number in range(2):
        request, ready = world.generation(f"prompt {number}>"), threading.Event()
        world.app.admit(request)
        world.app.prepare(request.request, lambda _error, ready=ready: ready.set())
        assert ready.wait(PATIENCE)
        begun.append(world.app.begin(request.request))
    assert {it.sequence for it in begun if it is not None} == {0, 1}
    for it in begun:
        assert it is not None
        world.app.end(it.request)
    world.recall()


@pytest.mark.parametrize("recurs", [0, 1])
def test_policy_learns_whose_prompts_have_graphs_of_their_own(make_world: MakeWorld, recurs: int) -> None:
    world = make_world()
    world.played.recurs = recurs
    world.warm()
    request, ready = world.generation(), threading.Event()
    world.app.admit(request)
    world.app.prepare(request.request, lambda _error: ready.set())
    assert ready.wait(PATIENCE)
    begun = world.app.begin(request.request)
    assert begun is not None
    assert begun.apart == bool(recurs)
    [went_on] = world.app.step("a", [request.request], 3)
    assert went_on.apart == bool(recurs)
    world.app.end(request.request)


def test_texts_and_tokens_are_converted_without_weights(make_world: MakeWorld) -> None:
    world = make_world(memory=WHOLE)
    world.warm()
    world.recall()
    world.played.memory = 0
    world.ask(Convert(world.number(), "a", ToTokens("abc", pieces=True)))
    assert (world.converted().tokens, world.converted().pieces) == ([97, 98, 99], [b"a", b"b", b"c"])
    world.ask(Convert(world.number(), "a", ToText([97, 98])))
    assert world.converted().text == "ab"
    world.ask(Convert(world.number(), "a", AskTemplate()))
    assert world.converted().text.startswith("{% for m in messages")
    with pytest.raises(Unanswered, match="no such token"):
        world.ask(Convert(world.number(), "a", ToText([1 << 20])))


def test_a_trial_finds_out_that_a_model_makes_text(world: InsideWorld) -> None:
    assert {stored.trial for stored in world.app.stored()} == {0}
    world.ask(Try(world.number(), "a"))
    tried = next(stored for stored in world.app.stored() if stored.name == "a")
    assert tried.trial
    assert tried.abilities is not None
    assert tried.abilities.text


def test_an_answer_keeps_to_a_schema_and_to_a_grammar(world: InsideWorld) -> None:
    assert re.fullmatch(r"-?[0-9]*", world.say(schema='{"type": "integer"}', max_tokens=4))
    assert world.say(grammar='root ::= "yes" | "no"') in {"yes", "no"}
    with pytest.raises(Unanswered) as refused:
        world.say(grammar="root ::= nothing")
    assert refused.value.code == "grammar_unsupported"


def test_texts_become_vectors_of_length_one(world: InsideWorld) -> None:
    finished = world.ask(Embed(world.number(), "a", ["one", [97, "b"]]))
    [embedded] = [answer for answer in world.answers if isinstance(answer, Embedded)]
    assert [struct.unpack("<2f", vector) for vector in embedded.vectors] == [pytest.approx((0.6, 0.8))] * 2
    assert finished.usage.prompt_tokens == 5
    for text in ("x" * (CONTEXT + 1), ""):
        with pytest.raises(Unanswered) as refused:
            world.ask(Embed(world.number(), "a", [text]))
        assert refused.value.code == "context_length_exceeded"


# ---- what it cannot do ---------------------------------------------------------------------------


def test_what_a_request_asks_for_that_there_is_not_is_refused_by_name(world: InsideWorld) -> None:
    with pytest.raises(Unanswered, match="round the length") as refused:
        world.say(rounding=8)
    assert refused.value.code == "secure_world_inside"
    assert "--secure-world host" in refused.value.hint


def test_guesses_are_refused_by_name(world: InsideWorld) -> None:
    with pytest.raises(CallerError, match="guesses"):
        world.app.guess(1, "c", 4)


def test_a_prompt_that_does_not_fit_is_the_callers_mistake(world: InsideWorld) -> None:
    with pytest.raises(Unanswered) as refused:
        world.say("x" * CONTEXT)
    assert refused.value.code == "context_length_exceeded"


def test_a_model_that_there_is_not_is_unknown(world: InsideWorld) -> None:
    with pytest.raises(UnknownModelError):
        world.app.is_open("nobody")
    with pytest.raises(UnknownModelError):
        world.app.open("../a")


# ---- memory --------------------------------------------------------------------------------------


def test_a_model_that_was_recalled_comes_back_and_says_the_same(world: InsideWorld) -> None:
    before = world.say()
    recalled = world.recall()
    assert recalled.returned == WHOLE * CHUNK
    assert world.played.granted == 0
    assert [memory.weights for memory in world.app.memory()] == [0]
    assert world.say() == before
    assert world.played.granted == WHOLE


def test_weights_that_go_in_the_middle_of_an_answer_come_in_again(world: InsideWorld) -> None:
    world.say("other>")
    went: list[int] = []

    def recall() -> None:
        world.played.between_slices = lambda: None
        model = next(iter(world.played.models.values()))
        went.append(sum(model.ready))
        world.played._evict(model, Kind.WEIGHTS, 1, WEIGHTS)

    world.played.between_slices = recall
    assert world.say() == answer_to("hello>")
    assert went == [WEIGHTS]


def test_a_part_is_recalled_from_the_end_of_the_weights(world: InsideWorld) -> None:
    world.warm()
    world.app.return_unused()
    assert world.app.chunks("a") == [(2, WEIGHTS)]
    assert world.recall(demand=CHUNK).returned == CHUNK
    assert world.app.chunks("a") == [(2, WEIGHTS - 1), (0, 1)]
    assert world.app.missing("a").size == (1 + KV + SCRATCH) * CHUNK


def test_an_os_that_has_no_memory_is_told_of_and_nothing_is_lost(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "_PATIENCE", 0.1)
    world = make_world(memory=WEIGHTS + 1)
    with pytest.raises(Unanswered) as refused:
        world.say()
    assert (refused.value.code, refused.value.blame) == ("memory_refused", "normal_world")
    world.played.memory = WHOLE
    assert world.say() == answer_to("hello>")
    assert world.played.held == world.played.granted == WHOLE


def test_a_model_that_the_machine_has_no_room_for_is_refused_before_it_is_written(
    make_world: MakeWorld,
) -> None:
    world = make_world(memory=WHOLE - 1)
    with pytest.raises(Unanswered, match="at its first use") as refused:
        world.say()
    assert refused.value.code == "memory_refused"
    assert "--guest-memory" in refused.value.hint
    assert Ask.WRITE not in world.played.asked
    world.played.memory = WHOLE
    assert world.say() == answer_to("hello>")


def test_memory_that_the_os_took_for_a_moment_breaks_no_answer_off(make_world: MakeWorld) -> None:
    world = make_world(memory=WHOLE)

    def take() -> None:
        world.played.between_slices = lambda: None
        model = next(iter(world.played.models.values()))
        world.played._evict(model, Kind.WEIGHTS, 1, WEIGHTS)
        world.played._without_model(Ask.GIVE_BACK, (WHOLE,))
        world.played.memory = 0
        threading.Timer(0.2, setattr, (world.played, "memory", WHOLE)).start()

    world.played.between_slices = take
    assert world.say() == answer_to("hello>")


def test_an_idle_model_makes_way(make_world: MakeWorld) -> None:
    world = make_world(memory=WHOLE)
    assert world.say(model="a") == world.say(model="c")
    assert world.say(model="a") == answer_to("hello>")
    assert world.played.granted <= WHOLE


def test_what_is_granted_and_unused_goes_back(world: InsideWorld) -> None:
    assert world.app.grant(3 * CHUNK - 1, 0) == 3 * CHUNK
    pool = world.app.pool()
    assert (pool.granted, pool.secure, pool.resident) == (3 * CHUNK, 0, 3 * CHUNK)
    assert world.app.return_unused() == 3 * CHUNK
    assert world.played.granted == 0


def test_weights_are_brought_in_ahead_of_need_in_granted_memory_only(world: InsideWorld) -> None:
    world.app.open("a")
    world.app.evict("a", Kind.WEIGHTS, 1 << 30, keep=True)
    world.app.return_unused()
    world.app.grant(2 * CHUNK, 0)
    world.app.load("a", None)
    assert eventually(lambda: world.app.memory()[0].weights == 2 * CHUNK and not world.app.loading)
    world.app.stop_loading()


def test_inside_the_secure_os_a_models_heap_is_granted_and_goes_back_with_it(make_world: MakeWorld) -> None:
    world = make_world(inside=True)
    world.say()
    [memory] = world.app.memory()
    assert memory.heap == world.played.heap * CHUNK > 0
    world.app.close("a", 0.0)
    assert world.played.heap == 0
    world.app.return_unused()
    assert world.played.granted == 0


# ---- what is damaged, gone or hostile ------------------------------------------------------------


def test_a_damaged_image_fails_a_request_and_is_made_anew(world: InsideWorld) -> None:
    world.say()
    world.recall()
    [image] = (world.store / "images").iterdir()
    damaged = bytearray(image.read_bytes())
    damaged[-20] ^= 1
    image.write_bytes(damaged)
    with pytest.raises(Unanswered) as refused:
        world.say()
    assert refused.value.blame == "stored_data"
    assert world.say() == answer_to("hello>")


def test_a_damaged_model_is_not_opened_and_leaves_nothing(world: InsideWorld) -> None:
    world.played.damaged = True
    with pytest.raises(StoredDataError, match="damaged"):
        world.app.open("a")
    assert world.played.models == {}
    assert list((world.store / "images").iterdir()) == []


def test_a_file_that_is_none_is_no_model(world: InsideWorld) -> None:
    (world.store / "models/d.flex").write_bytes(b"FLEXSEAL" + os.urandom(20000))
    with pytest.raises(StoredDataError):
        world.app.open("d")
    assert [stored.name for stored in world.app.stored()] == ["a", "c"]


def test_who_asks_an_application_that_has_ended_hears_of_it(store: Path, renderer: Renderer) -> None:
    played, limits = PlayedApplication(), ModelLimits(Limits(512, 2, 0))
    app = InsideApp(Link(played.wire), SealedFiles(store), renderer, limits, print, threads=1)
    app.open("a")
    app.admit(Generate(1, "a", TextPrompt("hello>"), Sampling()))
    played.wire.say(None)
    for _ in range(2):
        with pytest.raises(PeerError, match="ended"):
            app.memory()
    app.end(1)


@pytest.mark.parametrize(
    ("kind", "lie"),
    [
        (Ask.WORDS, (Status.DONE, b"", (1 << 40, 0, 0))),
        (Ask.WORDS, (Status.DONE, bytes(11), (4, 0, 0))),
        (Ask.WORDS, (Status.DONE, b"\xff" * 12, (4, 0, 0))),
        (Ask.OPEN, (Status.DONE, b"", (1 << 40, 1, 1, 1, 512))),
        (Ask.OPEN, (Status.DONE, b"", (1, 1 << 40, 1, 1, 512))),
        (Ask.OPEN, (Status.DONE, b"", (1, 1, 1, 1, 1 << 40))),
        (Ask.TOKENISE, (Status.DONE, b"odd", ())),
        (Ask.TOKENISE, (Status.DONE, b"\xff" * 4, ())),
        (Ask.BEGIN, (Status.DONE, b"", (1000,))),
        (Ask.BEGIN, (Status.DONE, b"", (0,))),
        (Ask.STEP, (Status.DONE, b"", ())),
        (Ask.STEP, (Status.DONE, b"odd", ())),
        (Ask.SAID, (Status.DONE, b"\xff" * 4, ())),
        (Ask.RESIDENT, (Status.DONE, b"", (0, 0, 0))),
        (Ask.STEP, (Status.BUSY, b"", ())),
        (Ask.STEP, (Status.FAILED, b"", ())),
        (Ask.SAID, (Status.DONE, b"", (3,))),
    ],
)
def test_answers_that_cannot_be_fail_a_request_and_nothing_else(
    world: InsideWorld, kind: Ask, lie: tuple[Status, bytes, tuple[int, ...]]
) -> None:
    world.played.lies[kind] = lie
    with pytest.raises(Unanswered) as failed:
        world.say()
    assert failed.value.code in {"trusted_app_broken", "trusted_app_failed"}
    del world.played.lies[kind]
    assert world.say() == answer_to("hello>")
