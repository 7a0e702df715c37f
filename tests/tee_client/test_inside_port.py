"""What crosses the port between policy and the trusted application inside holds no piece of what is said."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from inside_world import InsideWorld, Unanswered
from played_application import CHUNK, CONTEXT

from flexserve.protocol.prompts import ChatMessage, ChatPrompt, ToText, ToTokens
from flexserve.protocol.requests import Convert, Embed, Try
from flexserve.testing.port_recorder import Recorder

CANARY = "zyzzogeton"


def test_no_piece_of_a_request_crosses_the_port(make_world: Callable[..., InsideWorld]) -> None:
    world = make_world(watch=Recorder)
    recorder: Any = world.watched
    turn = ChatPrompt([ChatMessage("user", f"What is a {CANARY}?")])
    said = world.say(turn, owner=CANARY)
    for sampling in ({"stop": [said[3]]}, {"stop": [CANARY], "echo": True}, {"reuse": False}):
        world.say(f"{CANARY} " * 5, owner=CANARY, **sampling)
    for refused in (CANARY * CONTEXT, ""):
        with pytest.raises(Unanswered):
            world.say(refused)
    world.ask(Embed(world.number(), "a", [CANARY], owner=CANARY))
    world.say(turn, schema=f'{{"type": "object", "required": ["{CANARY}"]}}', max_tokens=20)
    with pytest.raises(Unanswered):
        world.say(turn, schema=f'{{"type": "{CANARY}"}}')
    world.warm()
    world.ask(Try(world.number(), "a"))
    for source in (ToTokens(CANARY, pieces=True), ToText([*CANARY.encode()]), turn):
        world.ask(Convert(world.number(), "a", source))
    recorder.seal("a", 0)
    recorder.keep(world.recall(), world.recall(demand=CHUNK), world.models.statuses())
    assert CANARY in world.say(f"{CANARY}>", echo=True)
    assert {
        "prepare",
        "plaintext",
        "begin",
        "step",
        "run",
        "end",
        "evict",
        "memory",
        "missing",
    } <= recorder.methods
    for text in recorder.crossed:
        assert CANARY not in text
        assert said not in text
        assert not re.search(r"(?<![0-9a-f])b['\"]", text)
        assert len(text) < 4000
