"""A secure world with the NPU of a machine: the tiny model's answers, whatever becomes of the NPU."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator

import pytest
from conversations import CONVERSATIONS, PAIRS, answer, npu_of
from library import Library

from flexserve.harness.worlds import DrivenWorld
from flexserve.platforms.trustzone.ram import PAGE
from flexserve.testing.npu_contract import eventually
from flexserve.testing.trustzone_npu import Lender, NpuMachine
from flexserve.units import MIB

pytestmark = pytest.mark.engine

RAM = 192 * MIB


@contextlib.contextmanager
def world_on(library: Library, machine: NpuMachine, *, patience: float = 120) -> Iterator[DrivenWorld]:
    with DrivenWorld(machine.secure_options(library.options(npu_patience=patience))) as world:
        yield world


@contextlib.contextmanager
def now_and_then(trouble: Callable[[], None]) -> Iterator[None]:
    """Make trouble from another thread, at random moments."""
    rng, over = random.Random(7), threading.Event()

    def run() -> None:
        while not over.wait(rng.uniform(0.02, 0.3)):
            trouble()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_answers_are_those_of_the_cpu_and_the_npu_computed_them(
    library: Library, tiny: str, expected: list[str]
):
    with NpuMachine(RAM) as machine, world_on(library, machine) as world:
        answers = [answer(world, tiny, conversation) for conversation in CONVERSATIONS]
        npu = npu_of(world)
        assert [text for text, _ in answers] == expected
        assert sum(count for _, count in answers) == npu.products > 10 * len(CONVERSATIONS)
        assert npu.fallbacks == npu.lost == 0
        assert npu.switches >= 1
        world.recall(None)
        assert eventually(lambda: machine.gate.normal), "it was not given back"
        machine.check()


def test_most_conversations_end_as_the_model_was_taught(expected: list[str]):
    learned = [said for _, said in PAIRS[1:]]
    assert sum(text == said for text, said in zip(expected, learned, strict=True)) >= len(learned) // 2


def test_an_os_that_always_wants_its_npu_back_gets_it_and_no_answer_changes(
    library: Library, tiny: str, expected: list[str]
):
    with NpuMachine(RAM) as machine, world_on(library, machine) as world:
        with now_and_then(lambda: machine.gate.ask(20)):
            for _ in range(2):
                assert [answer(world, tiny, each)[0] for each in CONVERSATIONS] == expected
        assert machine.lender.lent >= 2, "it was not lent again"
        assert npu_of(world).products > 0
        assert eventually(lambda: machine.gate.normal)
        machine.check()


def test_memory_that_is_recalled_meanwhile_changes_no_answer(
    library: Library, tiny: str, expected: list[str]
):
    with NpuMachine(RAM) as machine, world_on(library, machine) as world:
        with now_and_then(lambda: machine.monitor.pressure(2 * MIB // PAGE, 100)):
            assert [answer(world, tiny, each)[0] for each in CONVERSATIONS] == expected
        assert npu_of(world).products > 0
        machine.check()


def test_an_npu_that_hangs_is_given_up_and_the_cpu_goes_on(library: Library, tiny: str, expected: list[str]):
    with NpuMachine(RAM) as machine, world_on(library, machine, patience=2) as world:
        machine.device.stuck = True
        assert [answer(world, tiny, each)[0] for each in CONVERSATIONS] == expected
        npu = npu_of(world)
        assert npu.lost >= 1
        assert npu.fallbacks >= 1
        assert npu.state == "away"
        assert eventually(lambda: machine.gate.normal)


def test_a_driver_that_is_not_ours_never_drives(library: Library, tiny: str, expected: list[str]):
    with NpuMachine(RAM, Lender(code=b"something else")) as machine, world_on(library, machine) as world:
        assert [answer(world, tiny, each)[0] for each in CONVERSATIONS] == expected
        npu = npu_of(world)
        assert npu.state == "refused"
        assert npu.jobs == npu.products == 0
        assert machine.lender.lent == 1, "it was asked for again"
        assert machine.gate.normal


def test_an_os_that_does_not_lend_costs_nothing(library: Library, tiny: str, expected: list[str]):
    with NpuMachine(RAM, Lender(willing=False)) as machine, world_on(library, machine) as world:
        assert [answer(world, tiny, each)[0] for each in CONVERSATIONS] == expected
        assert npu_of(world).products == 0
        machine.relent()
        assert eventually(lambda: answer(world, tiny, CONVERSATIONS[0])[1] > 0), "it was never lent"


def test_a_secure_world_that_dies_with_the_npu_leaves_it_to_the_os(library: Library, tiny: str):
    with NpuMachine(RAM) as machine:
        with world_on(library, machine) as world:
            assert eventually(lambda: answer(world, tiny, CONVERSATIONS[0])[1] > 0)
        machine.reset_secure_core()
        assert eventually(lambda: machine.gate.normal)
        machine.check()
