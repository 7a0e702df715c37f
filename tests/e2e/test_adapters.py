"""Adapters: a model with one answers as plain llama.cpp does with it, whatever the OS does to the memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from library import CONTEXT, PROMPTS, THREADS, Library

from flexserve.harness.adapters import write_adapter
from flexserve.harness.plain import PlainProcess
from flexserve.harness.shapes import SHAPES
from flexserve.harness.worlds import DrivenWorld
from flexserve.protocol.prompts import TextPrompt

pytestmark = pytest.mark.engine

PROMPT = PROMPTS[0]
TOKENS = 12
SCALE = 0.5


def scores(world: DrivenWorld, model: str) -> list[float]:
    """Continue the prompt greedily; return the log-probability of each token."""
    number = world.submit(model, TextPrompt(PROMPT), TOKENS, logprobs=0)
    return [choice.token.logprob or 0.0 for choice in world.result(number).choices]


@pytest.mark.parametrize(("shape", "quant"), [("small-llama", "q4_0"), ("small-qwen2", "q8_0")])
def test_answers_are_those_of_plain_llama_cpp_with_the_adapter(
    library: Library, world: DrivenWorld, tmp_path: Path, shape: str, quant: str
) -> None:
    source, adapter = library.file(shape, quant), tmp_path / "adapter.gguf"
    write_adapter(adapter, SHAPES[shape], changes=("attn_q", "attn_output", "ffn_down"))
    base = library.add(source, f"base-of-{shape}")
    name = f"adapter-of-{shape}"
    library.store.add(adapter, name, lambda _done, _total: None, adapter_of=base, scale=SCALE)
    with PlainProcess(source, THREADS, CONTEXT) as plain:
        of_base = plain.scores(PROMPT, TOKENS)
    with PlainProcess(source, THREADS, CONTEXT, adapter=adapter, scale=SCALE) as plain:
        of_adapter = plain.scores(PROMPT, TOKENS)
    assert of_adapter[0] != pytest.approx(of_base[0], abs=0.01), "it changes nothing"

    for when in ("cold", "again, after the other", "after a recall"):
        for model, expected in ((base, of_base), (name, of_adapter)):
            found = scores(world, model)
            assert found
            assert found == pytest.approx(expected[: len(found)], abs=1e-3), f"{model}, {when}"
        if when != "cold":
            world.recall(None)
    world.recall(None)


def test_kv_of_a_model_is_not_that_of_its_adapter(
    library: Library, world: DrivenWorld, tmp_path: Path
) -> None:
    source, adapter = library.file("small-llama", "f16"), tmp_path / "adapter.gguf"
    write_adapter(adapter, SHAPES["small-llama"])
    base = library.add(source, "base-with-kv")
    library.store.add(adapter, "adapter-without", lambda _done, _total: None, adapter_of=base)
    cached = []
    for model in (base, base, "adapter-without", "adapter-without"):
        answer = world.result(world.submit(model, TextPrompt(PROMPT), 2, reuse=True))
        assert answer.finished.usage is not None
        cached.append(answer.finished.usage.cached_tokens)
    world.recall(None)
    assert [count > 0 for count in cached] == [False, True, False, True]
