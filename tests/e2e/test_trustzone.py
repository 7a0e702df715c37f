"""A secure world on the pages of a machine: the same tokens, whatever its kernel asks for or does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest
from library import PROMPTS, Library

from flexserve.errors import FlexServeError, GrantRefusedError, MachineGoneError
from flexserve.harness.worlds import DrivenWorld
from flexserve.normal.world import running_world
from flexserve.platforms.trustzone.abi import PageState
from flexserve.platforms.trustzone.ram import PAGE
from flexserve.protocol.launch import SecureOptions
from flexserve.testing.fake_os import Boasting, Driver, Scattering
from flexserve.testing.trustzone import FakeMachine, eventually
from flexserve.units import MIB

pytestmark = pytest.mark.engine

RAM = 256 * MIB
TOKENS = 16


@contextlib.contextmanager
def world_on(library: Library, machine: FakeMachine) -> Iterator[DrivenWorld]:
    with DrivenWorld(machine.secure_options(library.options())) as world:
        yield world


def held(machine: FakeMachine) -> int:
    """Return the bytes that the machine's kernel lacks."""
    return machine.charged(0)


@pytest.fixture(scope="module")
def model(library: Library) -> tuple[str, str]:
    """The name of a model, and what plain llama.cpp continues PROMPTS[0] with."""
    source = library.file("small-llama", "q4_k_m")
    return library.add(source, "guest-llama"), library.answer(source, PROMPTS[0], TOKENS)


@pytest.mark.parametrize("driver", [Driver, Scattering])
def test_output_is_that_of_plain_llama_cpp_before_and_after_pressure(
    library: Library, model: tuple[str, str], driver: type[Driver]
):
    name, expected = model
    with FakeMachine(RAM, driver()) as machine, world_on(library, machine) as world:
        assert world.welcome.protection == "trustzone-emulated"
        assert world.generate(name, PROMPTS[0], TOKENS).text == expected, "cold"
        before = held(machine)
        machine.monitor.pressure(before // 2 // PAGE, 500)
        assert eventually(lambda: held(machine) <= before // 2), "the kernel did not get what it asked for"
        assert world.generate(name, PROMPTS[0], TOKENS).text == expected, "after half was taken"
        world.recall(None)
        assert world.generate(name, PROMPTS[0], TOKENS).text == expected, "after all was taken"
        machine.check()


def test_what_a_person_recalls_reaches_the_kernel(library: Library, model: tuple[str, str]):
    name, _ = model
    with FakeMachine(RAM) as machine, world_on(library, machine) as world:
        world.generate(name, PROMPTS[0], TOKENS)
        before = held(machine)
        answer = world.recall(None)
        assert answer.os_before - answer.os_after > before // 2
        assert eventually(lambda: held(machine) <= answer.os_after + world.status().memory.granted)
        machine.check()


def test_a_kernel_without_memory_is_a_refusal_and_later_it_works(library: Library, model: tuple[str, str]):
    name, expected = model
    driver = Driver(most=16)
    with FakeMachine(RAM, driver) as machine, world_on(library, machine) as world:
        with pytest.raises(GrantRefusedError):
            world.generate(name, PROMPTS[0], TOKENS)
        driver.most = None
        assert world.generate(name, PROMPTS[0], TOKENS).text == expected


def test_a_kernel_that_lies_brings_no_wrong_token(library: Library, model: tuple[str, str]):
    name, expected = model
    with FakeMachine(RAM, Boasting()) as machine, world_on(library, machine) as world:
        with contextlib.suppress(GrantRefusedError):
            assert world.generate(name, PROMPTS[0], TOKENS).text == expected
        machine.check()


def test_a_driver_that_leaves_gets_everything_back(library: Library, model: tuple[str, str]):
    name, expected = model
    with FakeMachine(RAM) as machine, world_on(library, machine) as world:
        world.generate(name, PROMPTS[0], TOKENS)
        machine.monitor.detach()
        assert eventually(lambda: held(machine) == 0)
        assert world.generate(name, PROMPTS[0], TOKENS).text == expected, "when there is a driver again"


def test_a_dead_secure_world_holds_nothing_and_the_next_one_serves(library: Library, model: tuple[str, str]):
    name, expected = model
    with FakeMachine(RAM) as machine:
        with world_on(library, machine) as world:
            world.generate(name, PROMPTS[0], TOKENS)
            assert machine.monitor.counts()[PageState.SECURE]
        machine.reset_secure_core()
        assert eventually(lambda: held(machine) == 0)
        with world_on(library, machine) as world:
            assert world.generate(name, PROMPTS[0], TOKENS).text == expected
        machine.check()


def test_the_secure_world_ends_with_its_machine_and_says_so(library: Library):
    with FakeMachine(RAM) as machine, world_on(library, machine) as world:
        machine.die()
        assert world.wait() == 1
        assert "machine is gone" in str(world._death())


def test_a_server_whose_machine_is_gone_tries_no_other_secure_world(library: Library):
    options = SecureOptions(library.root, library.key)

    async def outlive(machine: FakeMachine) -> tuple[FlexServeError, int]:
        async with running_world(options, drain=0, core=machine) as world:
            machine.die()
            return await world.failed(), world.restarts

    with FakeMachine(RAM) as machine:
        reason, restarts = asyncio.run(outlive(machine))
    assert isinstance(reason, MachineGoneError)
    assert restarts == 0
