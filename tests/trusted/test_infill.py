"""Gaps to fill: the tokens around them are the model's own, and what is in the texts is text."""

from __future__ import annotations

import pytest
from fake_world import World

from flexserve.errors import CallerError
from flexserve.protocol.prompts import InfillPrompt, Snippet
from flexserve.protocol.requests import Generate
from flexserve.protocol.sampling import Sampling
from flexserve.trusted.text.preparation import Preparation
from flexserve.trusted.text.tokenizer import Gap


def tokens(world: World, prompt: InfillPrompt) -> list[int]:
    request = Generate(1, "a", prompt, Sampling())
    return Preparation(world.services.renderer).prepare(world.entry(), request).prompt.tokens


def test_what_is_before_comes_first_then_what_is_behind_then_the_middle(world: World) -> None:
    assert tokens(world, InfillPrompt("pre", "suf", "x")) == [1, *b"pre", *b"x", 2, *b"suf", 3]


def test_other_texts_of_the_project_come_before_it(world: World) -> None:
    prompt = InfillPrompt("p", "s", snippets=[Snippet("a.py", "one"), Snippet("b.py", "two")])
    assert tokens(world, prompt) == [4, *b"a.py\none", 4, *b"b.py\ntwo", 1, *b"p", 2, *b"s", 3]
    world.entry().vocabulary.gap = Gap(1, 2, 3, None)
    snippet = [*b"\n\n--- snippet ---\n\none"]
    assert tokens(world, InfillPrompt("p", "s", snippets=[Snippet("a.py", "one")]))[: len(snippet)] == snippet


def test_a_model_that_knows_no_gaps_says_so(world: World) -> None:
    world.entry().vocabulary.gap = None
    with pytest.raises(CallerError) as caught:
        tokens(world, InfillPrompt("p", "s"))
    assert caught.value.code == "infill_unsupported"
