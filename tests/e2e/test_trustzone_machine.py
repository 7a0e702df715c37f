"""A secure world on a real machine, with a monitor and a stock Linux: the same tokens, and memory for all."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import pytest
from library import PROMPTS, Library

from flexserve.bench.shapes import SHAPES
from flexserve.bench.worlds import DrivenWorld
from flexserve.platforms.trustzone.machine import Machine
from flexserve.platforms.trustzone.secure_memory import DEFAULT_GRANULE
from flexserve.testing.machines import booted
from flexserve.testing.trustzone import eventually
from flexserve.units import MIB

RAM = 512 * MIB
# Weights of half the machine's RAM.
HALF = dataclasses.replace(
    SHAPES["small-llama"], name="half-llama", layers=8, width=1024, ffn=4096, heads=8, kv_heads=4
)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with booted(RAM) as machine:
        yield machine


@contextlib.contextmanager
def world_on(library: Library, machine: Machine) -> Iterator[DrivenWorld]:
    arguments = library.arguments(*machine.secure_arguments(), granule=DEFAULT_GRANULE)
    with DrivenWorld(library.root, library.key, arguments=arguments, fds=machine.secure_fds) as world:
        yield world
    machine.reset_secure_core()
    assert eventually(lambda: held(machine) == 0), "the machine did not get back what a dead world held"


def held(machine: Machine) -> int:
    """Return the bytes that the machine's kernel counts as handed over."""
    return machine.memory().charged(0)


def hog(machine: Machine, percent: int, seconds: int) -> None:
    """Have a program of the machine fill so much of its memory, and find it unharmed."""
    done = machine.agent.ask("run", "hog", str(percent), str(seconds), seconds=120)
    assert (done["status"], done["result"]["wrong"]) == (0, 0), done
    assert not any("Out of memory" in line for line in machine.console()), machine.console()


def test_output_is_that_of_plain_llama_cpp_whatever_is_recalled(library: Library, machine: Machine):
    source = library.file("small-qwen2", "q8_0")
    name, expected = library.add(source, "machine-qwen2"), library.answer(source, PROMPTS[0], 16)
    with world_on(library, machine) as world:
        assert world.welcome.protection == "trustzone-emulated"
        for recalled in (None, MIB, None):
            assert world.generate(name, PROMPTS[0], 16).text == expected
            assert held(machine) >= world.status().memory.os_secure > 0
            world.recall(recalled)
        assert eventually(lambda: held(machine) <= DEFAULT_GRANULE)


def test_a_program_that_fills_the_machine_gets_the_memory_of_idle_models(library: Library, machine: Machine):
    source = library.file(HALF, "f16")
    name, expected = library.add(source, "machine-half"), library.answer(source, PROMPTS[1], 3)
    with world_on(library, machine) as world:
        assert world.generate(name, PROMPTS[1], 3).text == expected
        before = held(machine)
        assert before > RAM * 0.4
        hog(machine, percent=80, seconds=1)
        assert held(machine) < before // 2
        assert world.generate(name, PROMPTS[1], 3).text == expected


def test_a_driver_that_is_unloaded_gets_everything_back_and_may_come_again(
    library: Library, machine: Machine
):
    source = library.file("small-llama", "q8_0")
    name, expected = library.add(source, "machine-llama"), library.answer(source, PROMPTS[1], 8)
    with world_on(library, machine) as world:
        assert world.generate(name, PROMPTS[1], 8).text == expected
        machine.agent.ask("unload", "flexmem", seconds=60)
        assert machine.monitor().pages["SECURE"] == 0
        machine.agent.ask("load", "flexmem")
        assert world.generate(name, PROMPTS[1], 8).text == expected
