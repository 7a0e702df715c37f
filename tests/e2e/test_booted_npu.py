"""The NPU of a real machine, lent by its Linux and driven by its driver in the monitor's sandbox."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import pytest
from conversations import CONVERSATIONS, answer, npu_of
from library import Library

from flexserve.emulator.build import Options
from flexserve.emulator.machine import Machine
from flexserve.harness.worlds import DrivenWorld
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.secure_memory import DEFAULT_CHUNK
from flexserve.testing.machines import booted
from flexserve.testing.trustzone import eventually
from flexserve.units import MIB

pytestmark = [pytest.mark.vm, pytest.mark.engine]

RAM = 512 * MIB
FEW = CONVERSATIONS[:4]


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with booted(RAM, npu=True, options=Options(npu=True)) as machine:
        yield machine


@contextlib.contextmanager
def world_on(library: Library, machine: Machine) -> Iterator[DrivenWorld]:
    options = library.options(npu_patience=120.0, chunk=DEFAULT_CHUNK)
    with DrivenWorld(machine.secure_options(options)) as world:
        yield world
    machine.reset_secure_core()
    assert eventually(lambda: driver(machine)["ours"] == 1, within=20), "its Linux did not get the NPU back"
    assert eventually(lambda: machine.memory().charged(0) == 0, within=20)


def driver(machine: Machine) -> dict[str, int]:
    """Return what the driver counts."""
    return machine.agent.ask("flexnpu")


def multiplied(machine: Machine) -> None:
    """Have a program of the machine compute in each format, and find all of it right."""
    done = machine.agent.ask("run", "npu", "multiply", seconds=120)
    assert (done["status"], done["result"]["wrong"]) == (0, 0), done


@contextlib.contextmanager
def a_program_that_uses_the_npu(machine: Machine) -> Iterator[None]:
    """Have a program of the machine recognise images meanwhile, one after the other; none is wrong."""
    job = machine.agent.ask("start", "npu", "vision", "15")["job"]
    yield
    done: dict[str, Any] = {"running": True}

    def ended() -> bool:
        done.update(machine.agent.ask("job", str(job)))
        return not done["running"]

    assert eventually(ended, within=120)
    assert done["status"] == 0, done
    assert done["result"]["products"] > 0
    assert done["result"]["wrong"] == 0


def here(world: DrivenWorld, name: str) -> None:
    """Ask until the NPU computes."""
    assert eventually(lambda: answer(world, name, FEW[0])[1] > 0, within=120), "the NPU did nothing"


def test_answers_are_those_of_the_cpu_and_the_npu_computed_them(
    library: Library, machine: Machine, tiny: str, expected: list[str]
):
    multiplied(machine)
    with world_on(library, machine) as world:
        here(world, tiny)
        answers = [answer(world, tiny, conversation) for conversation in CONVERSATIONS]
        assert [text for text, _ in answers] == expected
        assert sum(count for _, count in answers) > len(CONVERSATIONS)
        assert driver(machine)["grants"] >= 1
    multiplied(machine)


def test_both_worlds_compute_at_once_and_neither_is_wrong(
    library: Library, machine: Machine, tiny: str, expected: list[str]
):
    with world_on(library, machine) as world:
        here(world, tiny)
        with a_program_that_uses_the_npu(machine):
            for _ in range(3):
                assert [answer(world, tiny, each)[0] for each in CONVERSATIONS] == expected
        assert npu_of(world).switches >= 2, "it never came back"
        assert driver(machine)["asks"] >= 1


def test_memory_that_is_recalled_meanwhile_changes_no_answer(
    library: Library, machine: Machine, tiny: str, expected: list[str]
):
    rng = random.Random(3)
    with world_on(library, machine) as world:
        here(world, tiny)
        for conversation, said in zip(CONVERSATIONS, expected, strict=True):
            world.recall(rng.choice((None, MIB, 4 * MIB)))
            assert answer(world, tiny, conversation)[0] == said
        assert npu_of(world).products > 0


def test_a_driver_that_is_unloaded_has_it_back_and_may_come_again(
    library: Library, machine: Machine, tiny: str, expected: list[str]
):
    with world_on(library, machine) as world:
        here(world, tiny)
        machine.agent.ask("unload", "flexnpu", seconds=60)
        assert machine.monitor().npu is abi.NpuState.NORMAL
        assert answer(world, tiny, FEW[1]) == (expected[1], 0), "the CPU did it alone"
        machine.agent.ask("load", "flexnpu")
        here(world, tiny)


def test_a_machine_without_an_npu_answers_the_same(library: Library, tiny: str, expected: list[str]):
    options = library.options(chunk=DEFAULT_CHUNK)
    with booted(RAM) as machine, DrivenWorld(machine.secure_options(options)) as world:
        assert [answer(world, tiny, each)[0] for each in FEW] == expected[: len(FEW)]
        assert world.status().npu is None
