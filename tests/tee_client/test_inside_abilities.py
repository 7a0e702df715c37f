"""What a trusted application that is reached by messages does beside plain answers, as policy drives it."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from inside_world import InsideWorld, Unanswered
from played_application import CONTEXT, answer_to

from flexserve.protocol.answers import Choice, Delta, Embedded
from flexserve.protocol.prompts import InfillPrompt, Snippet
from flexserve.protocol.requests import Embed, Generate, Try
from flexserve.protocol.sampling import Sampling
from flexserve.tee_client.messages import Ask, Status, packed

MakeWorld = Callable[..., InsideWorld]


# ---- the probabilities of a prompt ---------------------------------------------------------------


def choices(world: InsideWorld) -> list[Choice]:
    """Return what was told of tokens."""
    return [each for answer in world.answers if isinstance(answer, Delta) for each in answer.choices]


def test_a_prompts_tokens_are_told_before_the_answers(world: InsideWorld) -> None:
    prompt = "a prompt of more tokens than one graph takes in here>"
    finished = world.ask(world.generation(prompt, echo=True, logprobs=1, max_tokens=2))
    told = choices(world)
    whole = prompt + answer_to(prompt)[:2]
    assert b"".join(each.token.piece for each in told) == whole.encode()
    assert [each.token.logprob for each in told] == [None] + [-0.25] * (len(whole) - 1)
    assert [len(each.top) for each in told] == [0] + [1] * (len(whole) - 1)
    assert world.text() == whole
    assert finished.usage.completion_tokens == 2


def test_a_prompt_is_told_without_an_answer(world: InsideWorld) -> None:
    finished = world.ask(world.generation("hello>", echo=True, logprobs=0, max_tokens=0))
    assert b"".join(each.token.piece for each in choices(world)) == b"hello>"
    assert world.text() == "hello>"
    assert (finished.reason, finished.usage.completion_tokens) == ("length", 0)


def test_what_is_told_of_a_prompt_is_computed_whatever_kv_there_is(world: InsideWorld) -> None:
    world.say("hello>")
    world.ask(world.generation("hello>", echo=True, logprobs=0, max_tokens=1))
    assert world.started().cached_tokens == 0
    assert len(choices(world)) == 7


def test_scores_of_another_prompt_are_not_passed_on(world: InsideWorld) -> None:
    world.say("hello>")
    scores = struct.pack("<If", 97, -0.25)
    world.played.lies[Ask.SAID] = (Status.DONE, packed([97]) + scores, (1,))
    with pytest.raises(Unanswered, match="not asked"):
        world.say("hello>", echo=True, logprobs=0)


# ---- a context that is full ----------------------------------------------------------------------


def test_an_answer_goes_on_without_the_older_half_when_the_context_is_full(make_world: MakeWorld) -> None:
    world = make_world(limits={"shift": True})
    prompt = "x" * (CONTEXT - 5) + ">"
    finished = world.ask(world.generation(prompt))
    assert world.text() == answer_to(prompt)
    assert (finished.reason, finished.shifted) == ("stop", True)
    assert finished.usage.prompt_tokens == len(prompt)
    assert world.played.asked.count(Ask.SHIFT) == 1


def test_of_a_full_context_stays_what_is_to_be_kept(make_world: MakeWorld) -> None:
    world = make_world(limits={"shift": True})
    prompt = "begin" + "x" * (CONTEXT - 10) + ">"
    world.ask(world.generation(prompt, n_keep=5, n_discard=100))
    held = world.played.models[0].cached[0]
    assert bytes(held[:6]) == b"beginx"
    assert len(held) == len(prompt) - 100 + len(answer_to(prompt))


def test_an_answer_ends_with_the_context_where_that_is_asked_for(make_world: MakeWorld) -> None:
    world = make_world(limits={"shift": True})
    prompt = "x" * (CONTEXT - 5) + ">"
    finished = world.ask(world.generation(prompt, shift=False))
    assert (finished.reason, finished.usage.completion_tokens) == ("length", 4)
    assert Ask.SHIFT not in world.played.asked


# ---- gaps ----------------------------------------------------------------------------------------


def test_a_gap_is_filled_with_the_marks_of_the_model(world: InsideWorld) -> None:
    gap = InfillPrompt("before", "behind", snippets=[Snippet("other", "text")])
    world.ask(Generate(world.number(), "a", gap, Sampling(temperature=0, max_tokens=3)))
    asked = b"\n\n--- snippet ---\n\ntext" + b"\x01before" + b"\x02behind" + b"\x03"
    assert world.text() == answer_to(asked.decode())[:3]


def test_a_model_without_marks_for_gaps_fills_none(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("played_application.MARKS", (-1,) * 7)
    world = make_world()
    with pytest.raises(Unanswered) as refused:
        world.ask(Generate(world.number(), "a", InfillPrompt("a", "b"), Sampling()))
    assert refused.value.code == "infill_unsupported"


# ---- ranks ---------------------------------------------------------------------------------------


def test_texts_are_ranked_by_a_model_that_ranks(make_world: MakeWorld) -> None:
    world = make_world()
    world.played.metadata["llama.pooling_type"] = "4"
    world.ask(Try(world.number(), "a"))
    tried = next(stored for stored in world.app.stored() if stored.name == "a").abilities
    assert tried is not None
    assert (tried.ranks, tried.vectors) == (True, False)
    world.ask(Embed(world.number(), "a", ["one", "two"], query="what?"))
    [embedded] = [answer for answer in world.answers if isinstance(answer, Embedded)]
    assert [struct.unpack("<f", rank) for rank in embedded.vectors] == [(0.5,), (0.5,)]
    assert bytes(world.played.embedded) == b"what?\ntwo"
    with pytest.raises(Unanswered) as refused:
        world.ask(Embed(world.number(), "a", ["one"]))
    assert refused.value.code == "embeddings_unsupported"


def test_other_models_rank_nothing(world: InsideWorld) -> None:
    with pytest.raises(Unanswered) as refused:
        world.ask(Embed(world.number(), "a", ["text"], query="what?"))
    assert refused.value.code == "rerank_unsupported"


@pytest.mark.parametrize(
    ("said", "what"),
    [(struct.pack("<2f", 1, 2), "rank is none"), (struct.pack("<f", float("nan")), "no number")],
)
def test_a_rank_that_is_none_is_not_passed_on(make_world: MakeWorld, said: bytes, what: str) -> None:
    world = make_world()
    world.played.metadata["llama.pooling_type"] = "4"
    world.warm()
    world.played.lies[Ask.EMBED] = (Status.DONE, said, ())
    with pytest.raises(Unanswered, match=what):
        world.ask(Embed(world.number(), "a", ["text"], query="what?"))


# ---- KV ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kv", "number"), [("f16", 1), ("q4_0", 2), ("q8_0", 8)])
def test_kv_is_kept_as_it_was_set(make_world: MakeWorld, kv: str, number: int) -> None:
    world = make_world(limits={"kv": kv})
    assert world.say() == answer_to("hello>")
    assert world.played.kv == number


def test_a_model_whose_kv_cannot_be_kept_so_is_told_from_one_that_cannot_be_opened(
    make_world: MakeWorld,
) -> None:
    world = make_world(limits={"kv": "q8_0"})
    world.played.quantises = False
    with pytest.raises(Unanswered) as refused:
        world.say()
    assert refused.value.code == "kv_type_unsupported"
    assert "kv f16" in refused.value.hint


# ---- heap ----------------------------------------------------------------------------------------


def test_the_heap_that_is_asked_for_grows_with_what_the_model_is_to_hold(make_world: MakeWorld) -> None:
    few, many = (make_world(inside=True, sequences=each) for each in (1, 64))
    for world in (few, many):
        world.say()
    assert many.played.heap > few.played.heap


def test_a_vector_that_the_heap_has_no_room_for_is_refused(make_world: MakeWorld) -> None:
    world = make_world(inside=True)
    world.ask(Embed(world.number(), "a", ["text"]))
    world.played.memory = world.played.granted  # the OS has nothing more
    world.played.unused = 0
    with pytest.raises(Unanswered, match="not granted") as refused:
        world.ask(Embed(world.number(), "a", ["text"]))
    assert refused.value.blame == "normal_world"
    assert world.played.models[0].kv == 0
    world.played.memory = 1 << 20
    world.ask(Embed(world.number(), "a", ["text"]))
