"""Models that compute inside of the machine, at S-EL0: the same tokens whatever its kernel takes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conversations import MODEL
from inside_machines import ANSWER, QUESTION, TOKENS, client_of, conserved, held, machines
from library import Library

from flexserve.emulator.devicetree import BUFFER, BUFFER_BYTES, RING, RING_BYTES
from flexserve.emulator.inner_core import InnerCore
from flexserve.emulator.machine import Machine
from flexserve.errors import FlexServeError, UnknownModelError
from flexserve.harness.worlds import DrivenWorld
from flexserve.normal.world import World, running_world
from flexserve.platforms.trustzone.ram import BASE
from flexserve.protocol.answers import Delta
from flexserve.protocol.launch import EXIT_CUT_OFF
from flexserve.protocol.prompts import ChatMessage, ChatPrompt
from flexserve.protocol.sampling import Sampling
from flexserve.testing.trustzone import eventually

pytestmark = [pytest.mark.vm, pytest.mark.engine]


@pytest.fixture(scope="module")
def core(library: Library) -> Iterator[InnerCore]:
    """One machine."""
    with machines(library) as core:
        yield core


@pytest.fixture(scope="module")
def mortal(library: Library) -> Iterator[InnerCore]:
    """Machines that end."""
    with machines(library) as core:
        yield core


@pytest.fixture(scope="module")
def inner(core: InnerCore, library: Library) -> Iterator[DrivenWorld]:
    """One for all tests that leave it as they found it."""
    with client_of(core, library) as world:
        yield world


def test_it_answers_and_says_what_protects_it(inner: DrivenWorld, core: InnerCore, tiny: str) -> None:
    assert inner.welcome.protection == "trustzone-emulated-inside"
    assert inner.chat(tiny, QUESTION, TOKENS).text.startswith(ANSWER)
    assert core.machine.monitor().pages["SECURE"] > 0
    assert conserved(core)


def test_it_answers_the_same_after_all_was_recalled(inner: DrivenWorld, core: InnerCore, tiny: str) -> None:
    answers = [inner.chat(tiny, QUESTION, TOKENS).text]
    before = held(core)
    recalled = inner.recall(None)
    assert recalled.returned > 0
    assert eventually(lambda: held(core) < before)
    answers.append(inner.chat(tiny, QUESTION, TOKENS).text)
    assert len(set(answers)) == 1
    assert conserved(core)


def test_it_answers_the_same_while_the_kernels_shrinker_recalls(
    inner: DrivenWorld, core: InnerCore, tiny: str
) -> None:
    answers = [inner.chat(tiny, QUESTION, TOKENS).text]
    agent = core.machine.agent
    job = agent.ask("start", "hog", "80")["job"]
    while True:
        answers.append(inner.chat(tiny, QUESTION, TOKENS).text)
        outcome = agent.ask("job", str(job))
        if not outcome["running"]:
            break
    assert (outcome["signal"], outcome["result"]["wrong"]) == (0, 0)
    assert agent.ask("flexmem")["pressures"] > 0
    answers.append(inner.chat(tiny, QUESTION, TOKENS).text)
    assert len(set(answers)) == 1
    assert not any("Out of memory" in line for line in core.machine.console())
    assert conserved(core)


def test_a_model_that_is_removed_and_added_again_answers_on_the_same_machine(
    inner: DrivenWorld, core: InnerCore, library: Library, tiny: str
) -> None:
    expected = inner.chat(tiny, QUESTION, TOKENS).text
    machine = core.machine
    for _ in range(2):
        library.add(MODEL, "again")
        assert inner.chat("again", QUESTION, TOKENS).text == expected
        library.store.remove("again")
        with pytest.raises(UnknownModelError):
            inner.chat("again", QUESTION, TOKENS)
    assert core.machine is machine


def test_of_the_machines_memory_its_client_maps_messages_the_disks_buffer_and_nothing_else(
    inner: DrivenWorld,
) -> None:
    process = Path(f"/proc/{inner.pid}")
    if os.geteuid() != 0:
        pytest.skip("the process hides from who is not root")
    found = set[tuple[int, int]]()
    for line in (process / "maps").read_text().splitlines():
        if "memfd:ram" in line:
            first, end = (int(number, 16) for number in line.split()[0].split("-"))
            found.add((int(line.split()[2], 16), end - first))
    assert found == {(RING - BASE, RING_BYTES), (BUFFER - BASE, BUFFER_BYTES)}
    assert not any("memfd:ram" in os.readlink(fd) for fd in (process / "fd").iterdir())


def test_an_application_that_ends_takes_its_client_along_and_the_next_machine_answers(
    mortal: InnerCore, library: Library, tiny: str
) -> None:
    with client_of(mortal, library) as world:
        answer = world.chat(tiny, QUESTION, TOKENS).text
        machine = mortal.machine
        assert machine.monitor().pages["SECURE"] > 0
        while not machine.agent.ask("flexmem")["ended"]:  # what the client writes may come in between
            break_off(machine)
            time.sleep(0.1)
        assert world.wait() in (1, EXIT_CUT_OFF)
        assert re.search("trusted application (has ended|broke the protocol)", str(world._death()))
        assert eventually(lambda: machine.monitor().pages["SECURE"] == 0), "its memory is the kernel's again"
    with client_of(mortal, library) as world:
        assert world.chat(tiny, QUESTION, TOKENS).text == answer


def break_off(machine: Machine) -> None:
    """Say what is no message to the application, as a hostile kernel could: it ends."""
    written = int.from_bytes(os.pread(machine.ram_fd, 4, RING - BASE), "little")
    area = 1 << ((RING_BYTES - 4096) // 2).bit_length() - 1
    for number in range(64):
        place = RING - BASE + 4096 + (written + number) % area
        os.pwrite(machine.ram_fd, b"\xff", place)
    os.pwrite(machine.ram_fd, (written + 64).to_bytes(4, "little"), RING - BASE)
    machine.agent.ask("write", "/sys/kernel/debug/flexmem/said", "1")


def test_a_server_starts_a_client_that_died_again_on_another_machine(
    mortal: InnerCore, library: Library, tiny: str
) -> None:
    async def outlive() -> tuple[str, str, int]:
        options = library.options()
        async with running_world(options, drain=0, core=mortal) as world:
            first = await asked(world, tiny)
            os.kill((await world.report()).pid, signal.SIGKILL)
            while world.ready:
                await asyncio.sleep(0.01)
            while not world.ready:
                await asyncio.sleep(0.05)
            return first, await asked(world, tiny), world.restarts

    first, second, restarts = asyncio.run(outlive())
    assert first == second
    assert first.startswith(ANSWER)
    assert restarts == 1


async def asked(world: World, model: str) -> str:
    prompt = ChatPrompt([ChatMessage("user", QUESTION)])
    try:
        async with await world.generate(model, prompt, Sampling(max_tokens=TOKENS, temperature=0)) as answer:
            return "".join([message.text async for message in answer if isinstance(message, Delta)])
    except FlexServeError as error:
        return str(error)
