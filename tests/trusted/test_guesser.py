"""Guesses on a fake engine: the answer is what it would be without, whatever is guessed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fake_llama
import numpy as np
import pytest
from fake_llama import CONTEXT, answer_to
from fake_world import World
from numpy.typing import NDArray

from flexserve.errors import CallerError, GrantRefusedError
from flexserve.protocol.answers import Delta
from flexserve.protocol.trusted_app import Kind, Progress

COUNT = 3


def guessing(world: World, request: int) -> tuple[list[int], Progress]:
    """Answer a request that began, with guesses of "b"; return how many were right at each step."""
    right: list[int] = []
    progress = Progress(request, world.app._requests[request].generation.pending)  # type: ignore[union-attr]
    while progress.finished is None and progress.error is None:
        if progress.pending == 1:
            world.app.guess(request, "b", COUNT)
        [progress] = world.app.step("a", [request], 8)
        right.append(progress.right)
    return right, progress


@pytest.fixture
def both(world: World) -> World:
    world.app.open("b")
    return world


def begun(world: World, prompt: str = "hello>", **how: Any) -> int:
    request = world.generate(prompt, **how)
    world.begin(request)
    return request


def wrong_after(world: World, monkeypatch: pytest.MonkeyPatch, good: int) -> None:
    """Have "b" say something else than "a" at every token of an answer behind the first `good`."""
    scores = fake_llama._scores

    def of_draft(text: bytes) -> NDArray[np.float32]:
        found = scores(text)
        if len(text.rpartition(b">")[2]) >= good:
            found = found.copy()
            found[ord("!")] = 9
        return found

    draft = world.app._open["b"].context
    monkeypatch.setattr(draft, "logits", lambda span: of_draft(draft._read(draft._rows[span].sequence)))  # type: ignore[attr-defined]


def test_guesses_that_are_right_make_steps_fewer_and_the_answer_the_same(both: World) -> None:
    right, last = guessing(both, begun(both))
    assert both.text() == answer_to("hello>")
    assert last.finished is not None
    assert last.finished.reason == "stop"
    assert last.finished.usage.completion_tokens == 8
    assert sum(right) == 8 + 1 - len(right), "each graph brings one token more than it had right guesses"
    assert len(right) < 8
    assert [it.tokens for it in both.sent if isinstance(it, Delta)] == [1] * 8, "tokens go out one by one"


@pytest.mark.parametrize("good", [0, 1, 2, 5])
def test_wrong_guesses_change_nothing(both: World, monkeypatch: pytest.MonkeyPatch, good: int) -> None:
    wrong_after(both, monkeypatch, good)
    right, last = guessing(both, begun(both))
    assert both.text() == answer_to("hello>")
    assert last.finished is not None
    assert sum(right) <= good
    both.app.end(1)
    more = f"hello>{answer_to('hello>')}, and now>"
    followed = both.say(more)  # over the KV that it left
    assert followed.usage.cached_tokens >= len("hello>") + 7
    assert both.text() == answer_to(more)


@pytest.mark.parametrize("how", [{"max_tokens": 3}, {"stop": [answer_to("hello>")[4:6]]}, {"logprobs": 2}])
def test_limits_stops_and_probabilities_are_those_without_guesses(both: World, how: dict[str, Any]) -> None:
    both.say("hello>", **how)
    plain = [it for it in both.sent if isinstance(it, Delta)]
    request = begun(both, **how)
    guessing(both, request)
    found = [it for it in both.sent if isinstance(it, Delta) and it.request == request]
    assert [(it.text, it.tokens, it.stop) for it in found] == [(it.text, it.tokens, it.stop) for it in plain]
    pairs = [
        (one.token.logprob, other.token.logprob)
        for first, second in zip(found, plain, strict=True)
        for one, other in zip(first.choices, second.choices, strict=True)
    ]
    assert all(one == pytest.approx(other) for one, other in pairs)


def test_there_are_no_more_guesses_than_the_context_and_the_answer_have_room_for(both: World) -> None:
    request = begun(both, "x" * (CONTEXT - 6) + ">", max_tokens=100)
    _, last = guessing(both, request)
    assert last.finished is not None
    assert (last.finished.reason, last.finished.usage.completion_tokens) == ("length", 5)


def test_a_model_that_cannot_forget_gets_no_guesses(both: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_llama.FakeModel, "goes_back", False)
    request = begun(both, "h>")
    both.app.step("a", [request], 8)
    assert both.app.guess(request, "b", COUNT) == 0


def test_another_vocabulary_is_refused(both: World) -> None:
    both.app._open["b"].vocabulary.fingerprint = "other"
    request = begun(both, "h>")
    both.app.step("a", [request], 8)
    with pytest.raises(CallerError) as caught:
        both.app.guess(request, "b", COUNT)
    assert caught.value.code == "draft_mismatch"
    both.finish(request)
    assert both.text() == answer_to("h>")


def test_a_draft_is_recalled_between_two_graphs_and_guesses_on(both: World) -> None:
    request = begun(both)
    right = 0
    progress = both.app.step("a", [request], 8)[0]
    while progress.finished is None:
        both.recall(Kind.WEIGHTS, model="b", until=1e18)
        both.app.guess(request, "b", COUNT)
        [progress] = both.app.step("a", [request], 8)
        right += progress.right
    assert both.text() == answer_to("hello>")
    assert right > 0


def test_with_another_request_in_its_graph_what_was_guessed_is_dropped(both: World) -> None:
    first, second = begun(both, "first>"), begun(both, "the second>")
    both.app.step("a", [first], 8)
    both.app.step("a", [second], 16)
    assert both.app.guess(first, "b", COUNT) == COUNT
    both.finish(first, second)
    assert both.text(first) == answer_to("first>")
    assert both.text(second) == answer_to("the second>")


def test_the_draft_is_free_when_the_request_has_ended(both: World) -> None:
    request = begun(both)
    both.app.step("a", [request], 8)
    both.app.guess(request, "b", COUNT)
    assert both.app._open["b"].running
    both.finish(request)
    both.app.end(request)
    assert not both.app._open["b"].running
    both.app.close("b", 0.0)


def test_memory_that_the_draft_is_refused_is_said_and_the_answer_goes_on(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    world.app.open("b")
    request = begun(world)
    world.app.step("a", [request], 8)
    world.budget.limit = world.budget.granted
    with pytest.raises(GrantRefusedError):
        world.app.guess(request, "b", COUNT)
    world.finish(request)
    assert world.text() == answer_to("hello>")
