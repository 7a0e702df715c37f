"""Baselines on the real engine: what they are compared by is speed, for the text is the same."""

from __future__ import annotations

import pytest
from library import PROMPTS, Library

from flexserve.bench.baselines import BASELINES
from flexserve.errors import NormalWorldError

pytestmark = pytest.mark.engine

TOKENS = 12
_PROGRAM = "flexserve.bench.secure_world"


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_baseline_writes_the_same_text_request_after_request(library: Library, baseline: str):
    source = library.file("small-llama", "q4_0")
    name = f"baseline-{baseline}"
    library.add(source, name)
    expected = library.answer(source, PROMPTS[0], TOKENS)
    with library.open(memory="plain", program=(_PROGRAM, baseline)) as world:
        for _ in range(3):
            answer = world.generate(name, PROMPTS[0], TOKENS)
            assert answer.text == expected
            world.recall(None)
            assert all(model.resident == 0 for model in world.status().models)
        assert answer.finished.timings.restored_bytes > 0


def test_the_unprotected_baseline_does_not_start_in_secret_memory(library: Library):
    with pytest.raises(NormalWorldError), library.open(memory="secret", program=(_PROGRAM, "nw-base")):
        pass
