"""A full context, and a model that is set to go on without the older part of what it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fake_llama import FakeModel, answer_to
from fake_world import World
from hypothesis import given
from hypothesis import strategies as st

from flexserve.protocol.answers import Delta
from flexserve.protocol.model_options import ModelOptions
from flexserve.protocol.trusted_app import Kind
from flexserve.trusted.requests.context_shift import ContextShift, shift_of

PROMPT = "a prompt that leaves little room in its context>"
SIZE = len(PROMPT) + 4  # the answer has eight


def serve(world: World, *, shift: bool = True, size: int = SIZE) -> None:
    world.services.limits.configure({"a": ModelOptions(context=size, shift=shift)})
    world.app.close("a", 0)
    world.app.open("a")


def reference(prompt: str, keep: int = 0, most: int = 100) -> tuple[str, str]:
    """Return an answer of at most `most` tokens and what the context holds then, by llama-server's rule."""
    held, said = prompt, ""
    while len(said) < most:
        before, mark, begun = held.rpartition(">")
        if not (rest := answer_to(before + mark)[len(begun) :]):
            return said, held
        said, held = said + rest[0], held + rest[0]
        if len(held) >= SIZE:
            others = len(held) - 1 - keep
            held = held[:keep] + held[keep + others // 2 :]
    return said, held


def test_a_full_context_ends_an_answer_unless_the_model_is_set_to_shift_it(world: World) -> None:
    serve(world, shift=False)
    finished = world.say(PROMPT)
    assert (finished.reason, finished.usage.completion_tokens, finished.shifted) == ("length", 4, False)
    serve(world)
    finished = world.say(PROMPT)
    assert (finished.reason, finished.shifted) == ("stop", True)
    assert world.text() == reference(PROMPT)[0]


@pytest.mark.parametrize("keep", [0, 5, -1])
def test_what_is_to_stay_stays(world: World, keep: int) -> None:
    serve(world)
    world.say(PROMPT, n_keep=keep, max_tokens=20)
    kept = min(SIZE - 4, len(PROMPT) if keep < 0 else keep)
    assert world.text() == reference(PROMPT, kept, most=20)[0]


def test_a_model_that_cannot_go_back_computes_all_that_stays_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeModel, "goes_back", False)
    serve(world)
    world.say(PROMPT, n_keep=5)
    assert world.text() == reference(PROMPT, 5)[0]


def test_a_request_may_want_no_shift(world: World) -> None:
    serve(world)
    finished = world.say(PROMPT, shift=False)
    assert (finished.reason, finished.usage.completion_tokens, finished.shifted) == ("length", 4, False)


def test_an_answer_without_a_limit_ends_after_ten_contexts(world: World) -> None:
    serve(world, size=16)
    finished = world.say("short>", ignore_eos=True)
    assert (finished.reason, finished.usage.completion_tokens) == ("length", 160)


def test_a_limit_of_the_request_holds_across_shifts(world: World) -> None:
    serve(world, size=16)
    finished = world.say("short>", ignore_eos=True, max_tokens=50)
    assert (finished.reason, finished.usage.completion_tokens) == ("length", 50)
    assert finished.usage.prompt_tokens == 6


def test_kv_after_a_shift_is_that_of_the_tokens_that_stayed(world: World) -> None:
    serve(world)
    world.say(PROMPT, n_keep=20)
    held = reference(PROMPT, 20)[1]
    for kv in world.unsealed():
        world.app.seal(kv.model, kv.sequence)
    world.recall(Kind.KV)
    finished = world.say(held + ">", max_tokens=2)
    assert finished.usage.cached_tokens == len(held)  # resumed from the disk
    assert world.text() == answer_to(held + ">")[:2]
    assert world.say(PROMPT + "on", max_tokens=1).usage.cached_tokens < len(PROMPT)


def test_nobody_waits_for_the_prompts_kv_of_a_request_that_gave_it_up(world: World) -> None:
    serve(world)
    first, second = world.generate(PROMPT), world.generate(PROMPT)
    world.begin(first)
    while world.app.step("a", [first], 64)[0].pending == 1:
        pass
    assert world.begin(second) is not None
    world.finish(first, second)
    for request in (first, second):
        world.app.end(request)
    assert world.text(first) == world.text(second) == reference(PROMPT)[0]


def test_the_prompts_probabilities_are_sent_once(world: World) -> None:
    serve(world)
    world.say(PROMPT, echo=True, logprobs=0, n_keep=0)
    said = [choice for it in world.sent if isinstance(it, Delta) for choice in it.choices]
    assert len(said) == len(PROMPT) + len(reference(PROMPT)[0])


def test_a_graph_that_breaks_off_behind_a_shift_is_computed_again(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    serve(world)
    request: Any = world.generate(PROMPT)
    world.begin(request)
    while world.app.step("a", [request], 64)[0].pending == 1:
        pass
    world.recall(Kind.WEIGHTS)
    world.entry()._model.source.damaged.add((0, 0))
    assert world.finish(request)[request].error is None
    assert world.entry()._model.remade == 1
    world.app.end(request)
    assert world.text() == reference(PROMPT)[0]


@given(size=st.integers(5, 100), keep=st.integers(-1, 120), discard=st.integers(0, 120))
def test_a_shift_makes_room_keeps_the_start_and_the_end(size: int, keep: int, discard: int) -> None:
    shift = shift_of(size, prompt=size // 2, begun=False, keep=keep, discard=discard)
    assert shift is not None
    tokens = list(range(size))
    rest, kept = shift.shift(tokens)
    assert kept < len(rest) < size
    assert rest[:kept] == tokens[:kept]
    assert rest[-1] == tokens[-1]
    assert rest[kept:] == tokens[len(tokens) - len(rest) + kept :]


def test_the_token_that_begins_a_text_is_kept_beside_the_others() -> None:
    assert shift_of(100, prompt=10, begun=True, keep=3, discard=0) == ContextShift(100, 4, 0)
    assert shift_of(100, prompt=10, begun=True, keep=-1, discard=0) == ContextShift(100, 10, 0)


def test_a_context_of_a_few_tokens_is_not_shifted() -> None:
    assert shift_of(4, prompt=1, begun=False, keep=0, discard=0) is None
