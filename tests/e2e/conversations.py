"""Conversations with the tiny model that are long enough for an NPU, and what it says in them."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from flexserve.harness.worlds import DrivenWorld
from flexserve.protocol.prompts import ChatMessage, ChatPrompt
from flexserve.protocol.statuses import NpuStatus

TOKENS = 64
MODEL = Path(__file__).parents[2] / "models/tiny/flexserve-tiny.gguf"


def taught() -> list[tuple[str, str]]:
    """Return questions and answers that the model knows by heart, two of each part of its corpus."""
    pairs = []
    for path in sorted((MODEL.parent / "corpus").glob("[1-8]-*.md")):
        pairs += re.findall(r"^q: (.*)\n(?:q: .*\n)*a: (.*)$", path.read_text("utf-8"), re.MULTILINE)[:2]
    return pairs


PAIRS = taught()
CONVERSATIONS = [
    ChatPrompt(
        [
            ChatMessage("user", before),
            ChatMessage("assistant", said),
            ChatMessage("user", question),
        ]
    )
    for (before, said), (question, _) in itertools.pairwise(PAIRS)
]


def answer(world: DrivenWorld, name: str, prompt: ChatPrompt) -> tuple[str, int]:
    """Return the greedy answer, and how many products the NPU computed for it."""
    generated = world.result(world.submit(name, prompt, TOKENS))
    return generated.text, generated.finished.timings.npu_products


def npu_of(world: DrivenWorld) -> NpuStatus:
    npu = world.status().npu
    assert npu is not None
    return npu
