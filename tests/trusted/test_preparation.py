"""What is made of a prompt before it is computed."""

from __future__ import annotations

import pytest
from fake_world import World

from flexserve.errors import CallerError, InternalError
from flexserve.protocol.prompts import ChatMessage, ChatPrompt, TextPrompt
from flexserve.protocol.requests import Generate
from flexserve.protocol.sampling import Sampling
from flexserve.trusted.text.preparation import Preparation, Prepared

SCHEMA = '{"type": "integer"}'


def prepare(world: World, prompt: str | ChatPrompt, **sampling: object) -> Prepared:
    text = TextPrompt(prompt) if isinstance(prompt, str) else prompt
    request = Generate(1, "a", text, Sampling(**sampling))  # type: ignore[arg-type]
    return Preparation(world.services.renderer).prepare(world.entry(), request)


def test_a_text_is_its_tokens(world: World) -> None:
    prepared = prepare(world, "text")
    prompt = prepared.prompt
    assert (prompt.tokens, prompt.begun, prompt.echo) == ([*b"text"], "", "")
    assert prepared.entry is world.entry()


def test_a_conversation_is_rendered(world: World) -> None:
    assert prepare(world, ChatPrompt([ChatMessage("user", "hi")])).prompt.tokens == [*b"user: hi>"]


def test_an_answer_with_a_schema_is_confined(world: World) -> None:
    confinement = prepare(world, "a number: ", schema=SCHEMA).sampler._confinement
    assert confinement is not None
    assert confinement.admits(ord("7"))
    assert not confinement.admits(ord("x"))


def test_a_schema_that_cannot_be_followed_is_the_callers_mistake(world: World) -> None:
    with pytest.raises(CallerError) as caught:
        prepare(world, "text", schema='{"type": "string", "pattern": "(?=look)around"}')
    assert caught.value.code == "schema_unsupported"


@pytest.mark.parametrize(("length", "fits"), [(511, True), (512, False)])
def test_a_prompt_leaves_room_for_an_answer(world: World, length: int, fits: bool) -> None:
    if fits:
        assert len(prepare(world, "x" * length).prompt.tokens) == length
    else:
        with pytest.raises(CallerError, match="available context size of 512"):
            prepare(world, "x" * length)


def test_whatever_goes_wrong_is_told_to_who_waits_without_its_words(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_how: object) -> list[int]:
        raise KeyError("secret")

    monkeypatch.setattr(world.entry().vocabulary, "encode", fail)
    with pytest.raises(InternalError) as caught:
        world.prepare(world.generate("text"))
    assert "secret" not in str(caught.value)
