"""A random walk through one real secure world: whatever happens to its memory, answers do not change."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from library import PROMPTS, Library

from flexserve.errors import GrantRefusedError
from flexserve.harness.worlds import DrivenWorld
from flexserve.units import MIB

pytestmark = pytest.mark.engine

T = TypeVar("T")

TOKENS = 6
SMALL_BUDGET = 10 * MIB  # KV, scratch and some of the weights of one model
PATIENCE = 60.0  # seconds for the two accounts to agree, once nothing is under way

models = st.sampled_from(["walk-llama", "walk-moe"])
prompts = st.sampled_from(PROMPTS[1:])


class SecureWorldMachine(RuleBasedStateMachine):
    """Drives a world at random next to what plain llama.cpp said beforehand."""

    library: ClassVar[Library]
    answers: ClassVar[dict[tuple[str, str], str]]

    def __init__(self) -> None:
        super().__init__()
        self.world: DrivenWorld = self.library.open()

    @rule(model=models, prompt=prompts)
    def generate(self, model: str, prompt: str) -> None:
        generated = self.despite_refusal(lambda: self.world.generate(model, prompt, TOKENS))
        assert generated.text == self.answers[model, prompt]

    @rule(model=models, prompt=prompts, demand=st.integers(1, 8 * MIB))
    def recall_while_it_generates(self, model: str, prompt: str, demand: int) -> None:
        def recall(_text: str) -> None:
            self.recall_some(demand)

        generated = self.despite_refusal(lambda: self.world.generate(model, prompt, TOKENS, on_text=recall))
        assert generated.text == self.answers[model, prompt]

    def despite_refusal(self, ask: Callable[[], T]) -> T:
        """Return what `ask` returns; on a small budget, perhaps only after a recall of all that is idle."""
        try:
            return ask()
        except GrantRefusedError:
            assert self.world.budget is not None, "refused, although there is plenty"
        self.world.recall(None)
        return ask()

    @rule(demand=st.integers(1, 8 * MIB))
    def recall_some(self, demand: int) -> None:
        recalled = self.world.recall(demand)
        assert recalled.os_before >= recalled.os_after

    @rule()
    def recall_all(self) -> None:
        self.world.recall(None)

    @rule(model=models)
    def warm(self, model: str) -> None:
        try:
            self.world.warm(model)
        except GrantRefusedError:
            assert self.world.budget is not None, "refused, although there is plenty"

    @rule()
    def be_generous(self) -> None:
        self.world.budget = None

    @rule()
    def be_mean(self) -> None:
        self.world.budget = SMALL_BUDGET

    @rule(prompt=prompts)
    def kill_it_between_two_models(self, prompt: str) -> None:
        """End it when memory of the one model lies ready for the other."""
        self.world.budget = SMALL_BUDGET
        for model in ("walk-llama", "walk-moe"):
            self.generate(model, prompt)
        self.world.close()
        self.world = self.library.open()

    @invariant()
    def both_worlds_agree(self) -> None:
        """What the secure world says it has is what the normal world gave it, once nothing is under way.

        It is no less than what the OS counts, memory that lies ready included.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            memory = self.world.status().memory
            held = memory.granted + memory.secure
            if held == self.world.granted and memory.recalling == 0 and memory.os_secure <= held:
                return
            assert time.monotonic() < deadline, f"{memory}, {self.world.granted} granted"
            time.sleep(0.01)

    def teardown(self) -> None:
        self.world.close()


@pytest.fixture(scope="module")
def machine(library: Library) -> type[SecureWorldMachine]:
    SecureWorldMachine.library, SecureWorldMachine.answers = library, {}
    for name, shape, quant in (("walk-llama", "small-llama", "q4_0"), ("walk-moe", "small-moe", "q8_0")):
        source = library.file(shape, quant)
        library.add(source, name)
        for prompt in PROMPTS[1:]:
            SecureWorldMachine.answers[name, prompt] = library.answer(source, prompt, TOKENS)
    return SecureWorldMachine


def test_no_history_changes_an_answer_or_loses_memory(machine: type[SecureWorldMachine]):
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=5, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
