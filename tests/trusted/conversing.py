"""Conversations of a fake world: what tests of slots and of sealed KV do with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fake_llama import CONTEXT
from fake_world import World

from flexserve.protocol.trusted_app import Kind
from flexserve.trusted.kv.conversations import Conversations
from flexserve.trusted.kv.sealed import SealedKv

Make = Callable[..., World]
FIRST = "the first of two conversations that are long enough to be worth it>"
SECOND = "a second one, about something else altogether, just as long>"


def conversations(world: World) -> Conversations:
    found: Conversations = world.entry().conversations
    return found


def files(world: World) -> list[Path]:
    return sorted((world.store.root / "kv").iterdir())


def sealed_kv(world: World, quota: int = 1 << 30) -> SealedKv:
    """Return what another process would find of sealed KV."""
    return SealedKv(
        *(world.store, "a", world.engine.fingerprint, world.flexmem),
        form=f"f16, {CONTEXT} tokens",
        quota=quota,
        counters=world.counters,
    )


def seal(world: World, prompt: str = FIRST, **how: Any) -> str:
    """Have a conversation, sealed and out of memory; return all of its text."""
    world.say(prompt, **how)
    for kv in world.unsealed():
        world.app.seal(kv.model, kv.sequence)
    world.recall(Kind.KV)
    return prompt + world.text()
