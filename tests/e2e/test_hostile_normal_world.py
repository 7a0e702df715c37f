"""A normal world that refuses, lies about sizes or recalls all the time, against a real secure world.

Whatever it does: an answer is right or a typed error says why there is none, both accounts of memory
agree afterwards, and a normal world that comes to its senses is served as ever.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from library import PROMPTS, Library

from flexserve.errors import GrantRefusedError
from flexserve.harness.worlds import DrivenWorld
from flexserve.protocol.memory import Grant, NeedMemory, Pin, Recall, Recalled
from flexserve.protocol.statuses import ModelStatus
from flexserve.units import MIB

pytestmark = pytest.mark.engine

MODEL = "besieged"
PROMPT, TOKENS = PROMPTS[1], 12
PATIENCE = 60.0  # seconds for the two accounts to agree, once nothing is under way

Grants = Callable[[NeedMemory], list[Grant]]


class LyingWorld(DrivenWorld):
    """A driven world that answers demands for memory with any grants at all, and keeps honest books."""

    lie: Grants | None = None

    def _grant(self, message: NeedMemory) -> None:
        if self.lie is None:
            return super()._grant(message)
        with self._granting:
            grants = self.lie(message)
            self.granted += sum(grant.size for grant in grants)
        for grant in grants:
            self._send(grant)
        return None

    def both_worlds_agree(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            memory = self.status().memory
            held = memory.granted + memory.secure
            if held == self.granted and memory.recalling == 0:
                return
            assert time.monotonic() < deadline, f"{held} bytes held, {self.granted} granted"
            time.sleep(0.01)


def state_of(world: DrivenWorld) -> ModelStatus:
    return next(model for model in world.status().models if model.name == MODEL)


@pytest.fixture(scope="module")
def answer(library: Library) -> str:
    source = library.file("small-llama", "q8_0", seed=7)
    library.add(source, MODEL)
    return library.answer(source, PROMPT, TOKENS)


@pytest.fixture
def world(library: Library, answer: str) -> Iterator[LyingWorld]:
    world = LyingWorld(library.options())
    with world:
        yield world


def comes_to_its_senses(world: LyingWorld, answer: str) -> None:
    """The world turns honest, has all that is idle given back, and is served."""
    world.lie = None
    world.both_worlds_agree()
    world.recall(None)
    assert world.generate(MODEL, PROMPT, TOKENS).text == answer
    world.both_worlds_agree()


def refuse(world: LyingWorld, message: NeedMemory) -> list[Grant]:
    return [Grant(message.serial, 0, "no")]


def grant_less_than_is_needed(world: LyingWorld, message: NeedMemory) -> list[Grant]:
    return [Grant(message.serial, max(0, message.minimum - 1))]


def refuse_now_and_then(world: LyingWorld, message: NeedMemory) -> list[Grant]:
    return [Grant(message.serial, 0 if message.serial % 3 == 0 else message.size)]


def grant_ten_times_as_much(world: LyingWorld, message: NeedMemory) -> list[Grant]:
    return [Grant(message.serial, 10 * message.size)]


def grant_more_than_any_machine_has(world: LyingWorld, message: NeedMemory) -> list[Grant]:
    return [Grant(message.serial, (1 << 52) // 4096)]


def grant_an_odd_number_of_bytes(world: LyingWorld, message: NeedMemory) -> list[Grant]:
    return [Grant(message.serial, message.size + 1)]


def grant_twice(world: LyingWorld, message: NeedMemory) -> list[Grant]:
    return [Grant(message.serial, message.size), Grant(message.serial, message.size)]


def grant_what_nobody_asked_for_first(world: LyingWorld, message: NeedMemory) -> list[Grant]:
    return [Grant(message.serial + 1000, 5 * MIB), Grant(message.serial, message.size)]


@pytest.mark.parametrize("lie", [refuse, grant_less_than_is_needed])
def test_a_refusal_is_a_typed_error_and_not_the_end(world: LyingWorld, answer: str, lie: Grants) -> None:
    world.lie = lie.__get__(world)
    with pytest.raises(GrantRefusedError):
        world.generate(MODEL, PROMPT, TOKENS)
    comes_to_its_senses(world, answer)


@pytest.mark.parametrize(
    "lie",
    [
        refuse_now_and_then,
        grant_ten_times_as_much,
        grant_more_than_any_machine_has,
        grant_an_odd_number_of_bytes,
        grant_twice,
        grant_what_nobody_asked_for_first,
    ],
)
def test_lies_about_sizes_change_no_answer_and_lose_no_memory(
    world: LyingWorld, answer: str, lie: Grants
) -> None:
    world.lie = lie.__get__(world)
    for _ in range(3):
        try:
            assert world.generate(MODEL, PROMPT, TOKENS).text == answer
        except GrantRefusedError:
            assert lie is refuse_now_and_then  # type: ignore[comparison-overlap]
        world.both_worlds_agree()
        world.recall(None)
    comes_to_its_senses(world, answer)


def test_memory_refused_in_the_middle_of_an_answer_is_an_error_and_the_next_answer_is_right(
    world: LyingWorld, answer: str
) -> None:
    world.generate(MODEL, PROMPT, TOKENS)

    def take_and_refuse(_text: str) -> None:
        world.lie = refuse.__get__(world)
        world.recall(64 * MIB)

    with contextlib.suppress(GrantRefusedError):
        assert world.generate(MODEL, PROMPT, TOKENS, on_text=take_and_refuse).text == answer
    comes_to_its_senses(world, answer)


@pytest.mark.parametrize("demand", [None, 1, 64 * MIB, 1 << 53])
def test_recalls_without_pause_change_no_answer(world: LyingWorld, answer: str, demand: int | None) -> None:
    ending = threading.Event()

    def recall() -> None:
        while not ending.wait(0.05):
            world.recall(demand, deadline=50)

    thread = threading.Thread(target=recall)
    thread.start()
    try:
        for _ in range(3):
            assert world.generate(MODEL, PROMPT, TOKENS).text == answer
    finally:
        ending.set()
        thread.join()
    comes_to_its_senses(world, answer)


def test_a_deadline_of_no_time_at_all_brings_what_needs_no_waiting(world: LyingWorld, answer: str) -> None:
    world.generate(MODEL, PROMPT, TOKENS)
    assert world.recall(None, deadline=0).returned > 0
    comes_to_its_senses(world, answer)


def test_a_gentle_recall_takes_what_is_idle_and_nothing_from_a_running_request(
    world: LyingWorld, answer: str
) -> None:
    replies: list[Recalled] = []

    def ask_gently(_text: str) -> None:
        replies.append(gently(world, 64 * MIB))

    world.generate(MODEL, PROMPT, 200, on_text=ask_gently)
    meanwhile = [reply for reply in replies if reply.protected]  # the last ones may come after the end
    assert meanwhile
    assert [reply.plan for reply in meanwhile] == [[]] * len(meanwhile)
    gently(world, 64 * MIB)
    assert state_of(world).resident == 0
    comes_to_its_senses(world, answer)


def gently(world: LyingWorld, demand: int) -> Recalled:
    number = world._next()
    with world._granting:
        world._send(Recall(number, demand, 1000, gentle=True))
        reply = world._take(Recalled, lambda m: m.serial == number)
        world.granted -= reply.returned
    return reply


def test_pinned_weights_go_only_for_a_definite_demand_and_other_pins_harm_nobody(
    world: LyingWorld, answer: str
) -> None:
    world._send(Pin([f"nobody-{number}" for number in range(64)]))
    world._send(Pin([MODEL]))
    comes_to_its_senses(world, answer)
    world.recall(None)
    gently(world, 64 * MIB)
    assert state_of(world).resident == state_of(world).weights
    world.recall(1 << 53)  # a definite demand that only a pinned model can meet
    assert state_of(world).resident < state_of(world).weights
