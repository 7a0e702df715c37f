"""Between text and tokens: nothing is computed, and what is not there is refused."""

from __future__ import annotations

from typing import Any

import pytest
from fake_llama import END
from fake_world import World

from flexserve.errors import CallerError
from flexserve.protocol.answers import Converted, Started
from flexserve.protocol.prompts import AskTemplate, ChatMessage, ChatPrompt, ToText, ToTokens
from flexserve.protocol.trusted_app import Kind
from flexserve.trusted.requests import conversion


def converted(world: World, source: Any) -> Converted:
    """Convert from admission to end; return what the client was sent."""
    request = world.convert(source)
    assert not world.app.is_prepared(request)
    world.prepare(request)
    assert world.app.is_prepared(request)
    finished = world.app.run(request)
    world.app.end(request)
    started, result = world.sent[-2:]
    assert isinstance(started, Started)
    assert isinstance(result, Converted)
    assert started.prompt_tokens == finished.usage.prompt_tokens == len(result.tokens)
    return result


def test_a_text_becomes_tokens_with_their_pieces_where_they_are_wanted(world: World) -> None:
    assert converted(world, ToTokens("hé")).tokens == [*"hé".encode()]
    assert converted(world, ToTokens("hé")).pieces == []
    assert converted(world, ToTokens("hé", pieces=True)).pieces == [b"h", b"\xc3", b"\xa9"]


def test_tokens_become_text_with_the_names_of_controls_and_whole_characters(world: World) -> None:
    assert converted(world, ToText([*"hé".encode(), END])).text == "hé<end>"
    assert converted(world, ToText([*"hé".encode()][:2])).text == "h\N{REPLACEMENT CHARACTER}"
    assert converted(world, ToText([])).text == ""


def test_a_conversation_becomes_what_the_model_would_get(world: World) -> None:
    result = converted(world, ChatPrompt([ChatMessage("user", "hi")]))
    assert (result.text, result.tokens) == ("user: hi>", [*b"user: hi>"])


def test_the_template_comes_with_the_names_of_what_begins_and_ends_a_text(world: World) -> None:
    template = converted(world, AskTemplate())
    assert "{{ m.role }}" in template.text
    assert template.pieces == [b"", b""]  # the fake has none


def test_nothing_comes_into_memory_for_it(world: World) -> None:
    converted(world, ToTokens("text"))
    assert world.app.evict("a", Kind.WEIGHTS, 1 << 30, keep=False) == 0
    assert world.app.evict("a", Kind.KV, 1 << 30, keep=False) == 0


@pytest.mark.parametrize("token", [END + 1, 1 << 40])
def test_a_token_that_the_model_has_not_is_the_callers_mistake(world: World, token: int) -> None:
    with pytest.raises(CallerError) as caught:
        world.prepare(world.convert(ToText([1, token])))
    assert caught.value.code == "no_such_token"


def test_what_fills_no_message_is_the_callers_mistake(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "_MAX_SIZE", 100)
    with pytest.raises(CallerError, match="parts"):
        world.prepare(world.convert(ToTokens("x" * 20)))
    assert len(converted(world, ToTokens("x" * 10)).tokens) == 10
